"""The hidden states from which the prior predicts the tokens of some batches."""

from __future__ import annotations

import torch
from torch import Tensor

from ...editing.editable import find_editable
from ...policy import EditPolicy
from ...tokens.token_batch import TokenBatch
from ..measuring.inputs import Inputs


@torch.no_grad()
def scored_states(inputs: Inputs, policy: EditPolicy, *, most: int) -> tuple[Tensor, Tensor]:
    """The states behind up to `most` tokens to which a policy is applied, and the tokens.

    By a plain call of the trunk, row by row as the batches are padded.

    Returns:
        (n, D) hidden states and (n,) int64 token ids, on the prior's device.
    """
    states, ids, found = [], [], 0
    with inputs.in_place():
        for number in range(len(inputs.batches)):
            batch = inputs.on_device(number)
            hidden = inputs.trunk(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                use_cache=False,
                return_dict=True,
            )[0]
            where = _editable(inputs, policy, number).to(inputs.device)
            states.append(hidden[:, :-1][where[:, 1:]])
            ids.append(batch["input_ids"][where])
            found += len(ids[-1])
            if found >= most:
                break
    return torch.cat(states)[:most], torch.cat(ids)[:most]


def _editable(inputs: Inputs, policy: EditPolicy, number: int) -> Tensor:
    """(B, T) bool, on the CPU: to which tokens of a batch the policy is applied."""
    batch = TokenBatch.of(position_ids=None, **inputs.batch(number))
    where = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    where.view(-1)[batch.documents.index] = find_editable(inputs.prior, policy, batch)
    return where
