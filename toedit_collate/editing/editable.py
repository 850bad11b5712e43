"""Which tokens of a batch can be edited, and what the prior thinks of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..head.logprob import Scores, exact_logprob, score_observed
from ..head.projection import tile_elements
from ..policy import EditPolicy
from ..prior.prior import Prior
from ..tokens.checks import check_finite
from ..tokens.protection import structure_mask
from ..tokens.token_batch import TokenBatch
from ..transfer import send


def find_editable(prior: Prior, policy: EditPolicy, batch: TokenBatch) -> Tensor:
    """To which tokens of a batch the policy is applied: (M,) bool, on the host."""
    editable = batch.documents.position > 0
    if not policy.decides:
        return torch.zeros_like(editable)
    if policy.scope == "loss" and batch.labels is not None:
        editable &= batch.labels.reshape(-1)[batch.documents.index] != -100
    special = set(prior.special_ids) if policy.protect_special else set()
    runs = prior.template_sequences if policy.protect_special else []
    ids = torch.tensor(sorted(special | set(policy.protected_token_ids)), dtype=torch.int64)
    editable &= ~structure_mask(batch.tokens, batch.documents.document, ids, runs)
    if policy.protect is not None:
        protected = _user_mask(policy, batch, prior.tokenizer)
        editable &= ~protected.reshape(-1)[batch.documents.index]
    return editable


def _user_mask(policy: EditPolicy, batch: TokenBatch, tokenizer: object) -> Tensor:
    assert policy.protect is not None
    mask = policy.protect(batch.input_ids, tokenizer)
    shape = batch.input_ids.shape
    if not isinstance(mask, Tensor) or mask.shape != shape or mask.dtype != torch.bool:
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
        raise ValueError(
            f"protect must return a bool tensor of the shape of input_ids, "
            f"{tuple(shape)}, got {got}"
        )
    return mask.cpu()


def score(
    prior: Prior,
    policy: EditPolicy,
    states: Tensor,
    ids: Tensor,
    editable: Tensor,
    *,
    exact: bool = False,
    num_sampled: int = 0,
) -> tuple[Scores, Tensor]:
    """Log P of n tokens; the host waits for the device once.

    Args:
        prior: that gave the states.
        policy: where none of its decisions turns, log P may stay a bound (`policy.lowest_cut`).
        states: (n, D), the hidden states that predict the tokens.
        ids: (n,) int64, the tokens, on the device of the states.
        editable: (n,) bool, on the host: of these a sample is taken.
        exact: whether all log P must be exact.
        num_sampled: how many tokens at most are in the sample.

    Returns:
        The scores; and (S,) float32, exact log P of the sample, evenly spread.

    Raises:
        ValueError: the prior returned NaN or infinity.
    """
    sampled = editable.nonzero().squeeze(-1)
    if num_sampled < len(sampled):
        sampled = sampled[torch.linspace(0, len(sampled) - 1, num_sampled).long()]
    at = send(sampled, states.device)
    budget = tile_elements(len(ids), prior.vocab_size, states.device)
    sample = exact_logprob(prior.head, states[at], ids[at], budget=budget)
    competitors = None if exact else prior.likely_competitors(states)
    scores = score_observed(
        prior.head,
        states,
        ids,
        lowest_cut=policy.lowest_cut,
        competitors=competitors,
        with_kernel=prior.uses_kernel,
    )
    check_finite(scores.is_finite)
    return scores, sample
