"""edit_tokens(): the method on one batch of tensors (arXiv:2412.14689, Algorithm 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .head import observed_logprob
from .policy import EditPolicy
from .prior import Prior
from .protection import structure_mask
from .resample import draw_tokens, surely_kept
from .token_batch import EditResult, TokenBatch
from .uniforms import token_uniforms
from .validation import check_documents, check_finite, check_labels, check_shapes


@torch.no_grad()
def edit_tokens(
    prior: Prior,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    labels: Tensor | None = None,
    policy: EditPolicy | None = None,
    epoch: int = 0,
    generation: int = 0,
    return_logprob: bool = False,
    num_sampled: int = 0,
) -> EditResult:
    """Resample the tokens that the prior finds too easy: Algorithm 1 and Eq. 2.

    Args:
        prior: scores the original tokens, in one forward pass of its trunk.
        input_ids: (B, T) int64, on any device.
        attention_mask: (B, T), 1 at tokens and 0 at padding, on either side.
        position_ids: (B, T) int64, restarting at 0 at each document of a packed row. Without
            them, a row is one document.
        labels: (B, T) int64, equal to `input_ids` or -100 ("no loss").
        policy: which tokens, and how; default: the paper's.
        epoch: number of the epoch, for `redraw="epoch"`.
        generation: number of the generation.
        return_logprob: also compute log P exactly wherever there is one. The edit is the same.
        num_sampled: compute log P exactly for that many scored tokens, evenly spread.

    Raises:
        TypeError: a tensor is of the wrong type.
        ValueError: shapes differ; an id is not in the vocabulary; a document is longer than the
            prior's positions; a label is neither -100 nor the token; the prior returned NaN.

    Example:
        >>> result = edit_tokens(prior, input_ids)  # doctest: +SKIP
        >>> print(result.selected.sum(), result.changed.sum())  # doctest: +SKIP
    """
    policy = EditPolicy() if policy is None else policy
    check_shapes(input_ids, attention_mask, position_ids, labels)
    check_labels(input_ids, labels, attention_mask)
    batch = TokenBatch.on(prior.device, input_ids, attention_mask, position_ids, labels)
    check_documents(
        batch.documents, batch.tokens, vocab_size=prior.vocab_size, max_length=prior.max_length
    )
    return prior.run(
        lambda: _edit(prior, policy, batch, epoch, generation, return_logprob, num_sampled)
    )


def _edit(
    prior: Prior,
    policy: EditPolicy,
    batch: TokenBatch,
    epoch: int,
    generation: int,
    return_logprob: bool,
    num_sampled: int,
) -> EditResult:
    """Algorithm 1 on a batch that was checked."""
    documents, tokens = batch.documents, batch.tokens
    editable = _find_editable(prior, policy, batch)
    wanted = documents.position > 0 if return_logprob else editable
    states, logprob, sample = _score(
        prior, policy, batch, wanted, editable, exact=return_logprob, num_sampled=num_sampled
    )

    # x'_i = x_i where P(x_i | x_<i) < p; x'_i ~ P(. | x_<i) where it is >= p (Eq. 2).
    dropped = editable & policy.drops(logprob)
    selected = editable & policy.selects(logprob) & ~dropped
    uniforms = token_uniforms(
        batch.keys[documents.document[selected]],
        documents.position[selected],
        seed=policy.seed,
        epoch=epoch if policy.redraw == "epoch" else None,
        generation=generation,
    )
    new_tokens = tokens.clone()
    new_tokens[selected] = _resample(
        prior, policy, states[selected[wanted]], tokens[selected], logprob[selected], uniforms
    )
    return batch.result(
        new_tokens=new_tokens,
        selected=selected,
        dropped=dropped,
        scored=editable,
        logprob=logprob if return_logprob else None,
        sample_logprob=sample,
        pad_id=prior.pad_id,
    )


def _find_editable(prior: Prior, policy: EditPolicy, batch: TokenBatch) -> Tensor:
    """Which tokens may be edited: (M,) bool."""
    # The first token of a document has no context that could score it.
    editable = batch.documents.position > 0
    if not policy.decides:
        return torch.zeros_like(editable)
    if policy.scope == "loss" and batch.labels is not None:
        editable &= batch.labels.reshape(-1)[batch.documents.index] != -100
    special = set(prior.special_ids) if policy.protect_special else set()
    runs = prior.template_sequences if policy.protect_special else []
    ids = torch.tensor(sorted(special | set(policy.protected_token_ids)), dtype=torch.int64)
    protected = structure_mask(batch.input_ids, ids.to(batch.input_ids.device), runs)
    if policy.protect is not None:
        protected = protected | _user_mask(policy, batch.input_ids, prior.tokenizer)
    return editable & ~protected.reshape(-1)[batch.documents.index]


def _user_mask(policy: EditPolicy, input_ids: Tensor, tokenizer: object) -> Tensor:
    assert policy.protect is not None
    mask = policy.protect(input_ids, tokenizer)
    if not isinstance(mask, Tensor) or mask.shape != input_ids.shape or mask.dtype != torch.bool:
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
        raise ValueError(
            f"protect must return a bool tensor of the shape of input_ids, "
            f"{tuple(input_ids.shape)}, got {got}"
        )
    return mask.to(input_ids.device)


def _score(
    prior: Prior,
    policy: EditPolicy,
    batch: TokenBatch,
    wanted: Tensor,
    editable: Tensor,
    *,
    exact: bool,
    num_sampled: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Score the tokens that are `wanted`.

    Returns:
        states: a row (D,) for each wanted token.
        logprob: (M,) float32, NaN where not wanted; under `policy.lowest_cut` only a bound, unless
            `exact`.
        sample: (S,) float32, exact log P of S <= `num_sampled` editable tokens.
    """
    tokens = batch.tokens
    logprob = torch.full(tokens.shape, math.nan, device=tokens.device)
    if not wanted.any():
        prior.stand_by()
        return logprob.new_zeros(0, 1), logprob, logprob[:0]
    states = prior.predictive_states(batch.documents, tokens, wanted)
    head = prior.head
    cut = -math.inf if exact else policy.lowest_cut
    scores = observed_logprob(head, states, tokens[wanted], lowest_cut=cut)
    check_finite(scores, states)
    logprob[wanted] = scores
    sampled = editable[wanted].nonzero().squeeze(-1)
    if num_sampled < len(sampled):
        places = torch.linspace(0, len(sampled) - 1, num_sampled, device=sampled.device)
        sampled = sampled[places.long()]
    sample = observed_logprob(head, states[sampled], tokens[wanted][sampled])
    return states, logprob, sample


def _resample(
    prior: Prior,
    policy: EditPolicy,
    states: Tensor,
    tokens: Tensor,
    logprob: Tensor,
    uniforms: Tensor,
) -> Tensor:
    """Draw replacements for the n selected tokens: (n,) int64."""
    drawn = tokens.clone()
    head = prior.head
    is_open = torch.ones_like(tokens, dtype=torch.bool)
    if policy.region == "above":  # there, log P of a selected token is exact
        most = policy.top_k if policy.sampler == "top_k" else head.vocab_size
        is_open = ~surely_kept(uniforms, logprob, policy, num_candidates=most)
    drawn[is_open] = draw_tokens(
        head,
        states[is_open],
        tokens[is_open],
        uniforms[is_open],
        policy,
        prior.forbidden_ids(forbid_special=policy.protect_special),
    )
    return drawn
