"""Which tokens of a batch a policy is applied to."""

from __future__ import annotations

import torch
from torch import Tensor

from ..policy import EditPolicy, Protect
from ..prior.base import BasePrior
from ..tokens.protection import id_mask, rule_mask
from ..tokens.token_batch import TokenBatch


def find_editable(prior: BasePrior, policy: EditPolicy, batch: TokenBatch) -> Tensor:
    """The tokens of a batch to which the policy is applied: (M,) bool, on the host."""
    editable = batch.documents.position > 0
    if not policy.decides:
        return torch.zeros_like(editable)
    if policy.target != "both" and batch.labels is None:
        raise ValueError(
            f"target={policy.target!r} needs labels, and the batch has none; give labels, equal to "
            "input_ids or -100, or use target='both'"
        )
    if policy.scope == "loss" and batch.labels is not None:
        editable &= batch.labels.reshape(-1)[batch.documents.index] != -100
    if batch.edit is not None:
        editable &= batch.edit
    if policy.protect_special:
        editable &= ~prior.protection.mask(batch.tokens, batch.documents)
    editable &= ~id_mask(batch.tokens, policy.protected_token_ids)
    if isinstance(policy.protect, str):
        editable &= ~rule_mask(policy.protect, batch.tokens, batch.documents, prior.tokenizer)
    elif policy.protect is not None:
        protected = _user_mask(policy.protect, batch, prior.tokenizer)
        editable &= ~protected.reshape(-1)[batch.documents.index]
    return editable


def _user_mask(protect: Protect, batch: TokenBatch, tokenizer: object) -> Tensor:
    mask = protect(batch.input_ids.clone(), tokenizer)  # a copy, which it may change
    shape = batch.input_ids.shape
    if not isinstance(mask, Tensor) or mask.shape != shape or mask.dtype != torch.bool:
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
        raise ValueError(
            f"protect must return a bool tensor shaped like input_ids, {tuple(shape)}, got {got}"
        )
    return mask.cpu()
