"""Keys that an edit would make wrong are refused; other keys are not."""

import logging

import pytest
import torch
from trainees import AGGRESSIVE, documents, make_prior

from toedit_collate import ToEditCollator

PRIOR = make_prior()
IDS = torch.tensor([documents(1)[0]])
NEXT = IDS.roll(-1, dims=1)


def collate(**keys):
    batch = {"input_ids": IDS, **keys}
    return ToEditCollator(PRIOR, AGGRESSIVE, base_collator=lambda _: batch)([1]).to("cpu")


@pytest.mark.parametrize(
    "key",
    ["teacher_logprobs", "target_token_ids", "target_logprobs", "ref_per_token_logps", "logp",
     "advantages", "rewards", "start_positions", "end_positions", "teacher_logits"],
)  # fmt: skip
def test_what_was_said_of_the_tokens(key):
    with pytest.raises(ValueError, match=f"has '{key}', which belongs to the tokens from before"):
        collate(**{key: torch.zeros(1)})


@pytest.mark.parametrize(
    "copy", [IDS, NEXT, IDS.masked_fill(IDS % 3 == 0, -100)], ids=["same", "next", "masked"]
)
def test_a_copy_of_the_tokens(copy):
    with pytest.raises(ValueError, match=r"has 'lm_labels', a copy of input_ids.*as labels"):
        collate(labels=IDS, lm_labels=copy)


@pytest.mark.parametrize("key", ["loss_mask", "response_mask", "prompt_masks"])
def test_an_unknown_mask_without_labels(key):
    mask = torch.ones_like(IDS)
    with pytest.raises(ValueError, match=f"has {key} and no labels.*return labels"):
        collate(**{key: mask})
    assert not torch.equal(collate(**{key: mask}, labels=IDS)["input_ids"], IDS)


def test_what_stays_true(caplog):
    with caplog.at_level(logging.WARNING, "toedit_collate"):
        batch = collate(
            labels=IDS, token_type_ids=torch.zeros_like(IDS), special_tokens_mask=IDS * 0,
            completion_mask=torch.ones_like(IDS), weights=torch.ones(IDS.shape),
            others=IDS.flip(1), num_items_in_batch=3, id=["a"], length=torch.tensor([4]),
        )  # fmt: skip
    assert not torch.equal(batch["input_ids"], IDS)
    assert not caplog.records
