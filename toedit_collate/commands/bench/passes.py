"""The passes over a batch that the bench compares: the bare trunk, the plain edit, and ours."""

from __future__ import annotations

from typing import Any

import torch

from ...policy import EditPolicy
from ...stores.cache import DecisionCache
from ...training.batch import ToEditBatch
from ...training.collator import ToEditCollator
from ..measuring.inputs import Inputs
from ..measuring.machine import available_bytes, gib
from .plain import plain_bytes, plain_edit, soft_targets_loss
from .table import Row

TRUNK = "bare backbone"
PLAIN = "plain: softmax of all logits"
SOFT_TARGETS = "dense KL to the prior instead of an edit"
OURS = "ours"
EVERY_TOKEN = 'ours, every token drawn (region="all")'
WHOLE_HEAD = "ours, whole head (no early reject)"


def bare_trunk(inputs: Inputs, number: int) -> Any:
    """One forward pass of the trunk, over the padded batch and its mask."""
    batch = inputs.on_device(number)
    with torch.no_grad():
        return inputs.trunk(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        )


def plain(inputs: Inputs, policy: EditPolicy, number: int) -> Any:
    """The edit as one would write it with transformers alone."""
    return plain_edit(inputs.prior.model, **inputs.on_device(number), policy=policy)


def soft_targets(inputs: Inputs, number: int) -> Any:
    """The prior's side of a distillation by soft targets, with transformers alone."""
    return soft_targets_loss(inputs.prior.model, **inputs.on_device(number))


def plain_fits(inputs: Inputs) -> bool:
    """Whether there is memory for `plain` and `soft_targets`.

    A GPU may try: too much is an error there.
    """
    return inputs.device.type == "cuda" or _plain_bytes(inputs) < available_bytes(inputs.device)


def plain_left_out(inputs: Inputs) -> Row:
    """What stands in the place of its figures."""
    return Row(PLAIN, text=f"left out: would take some {gib(_plain_bytes(inputs))}")


def _plain_bytes(inputs: Inputs) -> int:
    B, T = inputs.B, inputs.T
    return plain_bytes(B, T, inputs.prior.vocab_size, inputs.trunk.dtype)


def make_collator(
    inputs: Inputs, policy: EditPolicy, cache: DecisionCache | None = None
) -> ToEditCollator:
    """A collator around batches that are collated already."""
    return ToEditCollator(inputs.prior, policy, base_collator=dict, cache=cache)


def ours(inputs: Inputs, collator: ToEditCollator, number: int) -> ToEditBatch:
    """The edit as training gets it; each round is another epoch, with other draws."""
    collator.set_epoch(number)
    return collator(inputs.batch(number)).to(inputs.device)
