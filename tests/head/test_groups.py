"""Logits of groups of ids, against the sum that defines them."""

import math

import pytest
import torch

from toedit_collate.head.groups import GroupColumns

V = 97


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_groups", [1, 5, 60, 10_000])
def test_logits_of_groups(num_groups, dtype):
    generator = torch.Generator().manual_seed(num_groups)
    group = torch.randint(-1, num_groups, (V,), generator=generator)
    logits = (4 * torch.randn(3, V, generator=generator)).to(dtype)
    logits[0] = -math.inf
    logits[1, ::2] = -math.inf
    columns = GroupColumns.of(group)
    found = columns.logits(logits, torch.tensor([[1.0], [2.0], [3.0]]))
    assert columns.ids.tolist() == sorted({*group.tolist()} - {-1})
    # Not one column for each of the trainee's ids: they may be many times those of the prior.
    assert found.shape == (3, len(columns.ids) + 1)
    assert found[:, -1].tolist() == [1, 2, 3]
    for column, one in enumerate(columns.ids.tolist()):
        members = logits[:, group == one]
        expected = members.double().logsumexp(-1).float()
        torch.testing.assert_close(found[:, column], expected)
        if members.shape[1] == 1:
            assert torch.equal(found[:, column], members[:, 0].float())


def test_no_group_has_a_member():
    columns = GroupColumns.of(torch.full((V,), -1))
    assert columns.logits(torch.zeros(2, V), -1.0).tolist() == [[-1.0]] * 2
