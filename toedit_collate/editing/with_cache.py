"""Edits a batch with a cache of decisions: only documents that it lacks are scored."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..head.candidates import Candidates, draw_among
from ..policy import EditPolicy
from ..prior.base import BasePrior
from ..stores.cache import DecisionCache, Decisions, Identity
from ..stores.ragged import Array
from ..tokens.checks import check_finite
from ..tokens.draws import Draws, content_digests
from ..tokens.result import EditResult, count_draws
from ..tokens.token_batch import TokenBatch, evenly_spread
from ..transfer import fetch
from .editable import find_editable

# One draw handles at most so many candidates, padding included.
MAX_DRAWN_ELEMENTS = 2**22


def edit_with_cache(
    prior: BasePrior,
    policy: EditPolicy,
    batch: TokenBatch,
    cache: DecisionCache,
    draws: Draws,
    num_sampled: int,
) -> EditResult:
    """Algorithm 1, with decisions from the cache; new decisions are added to it.

    Arguments and errors are as for `edit_tokens`. `num_sampled` counts tokens that are scored now.
    A `CachedPrior` raises a ValueError if the cache lacks a document.
    """
    check_can_be_cached(policy)
    cache.open(Identity.of(prior, policy))
    documents = batch.documents
    editable = find_editable(prior, policy, batch)
    # The decisions depend on which tokens are editable, too.
    tokens = batch.tokens
    if batch.pieces is not None:  # and on where the prior starts to read
        tokens = tokens | (batch.pieces.position == 0).long() << 30
    digests = content_digests(tokens.numpy(), documents.lengths, editable.numpy())
    known, decisions = cache.look_up(*digests.T)
    numbers = np.flatnonzero(known)
    sample = torch.zeros(0)
    missing = editable & ~torch.from_numpy(known)[documents.document]
    if missing.any():
        new, decided, sample = _decide(prior, policy, batch, digests, missing, draws, num_sampled)
        cache.add(decided)
        decisions = Decisions.concatenate([decisions, decided])
        numbers = np.concatenate([numbers, new])
    else:
        prior.make_idle_passes()
    start = documents.start[numbers].numpy()
    editable[np.repeat(start, decisions.num_unscored) + decisions.unscored] = False
    at = torch.from_numpy(np.repeat(start, decisions.counts) + decisions.position)
    is_dropped = torch.from_numpy(decisions.num_candidates == 0)
    selected = torch.zeros_like(editable).index_fill_(0, at[~is_dropped], True)
    dropped = torch.zeros_like(editable).index_fill_(0, at[is_dropped], True)
    new_tokens = batch.tokens.clone()
    if policy.num_draws > 1:
        new_tokens = new_tokens.unsqueeze(-1).repeat(1, policy.num_draws)
        drawn = torch.from_numpy(decisions.ids).repeat_interleave(decisions.weights.long())
        new_tokens[at] = drawn.view(-1, policy.num_draws)
    else:
        new_tokens[at[~is_dropped]] = _draw(policy, batch, decisions, at[~is_dropped], draws)
    where = editable.nonzero().squeeze(-1)
    return batch.result(
        where=where,
        new_tokens=new_tokens[where],
        selected=selected[where],
        dropped=dropped[where] if policy.drops_tokens else None,
        scored=editable,
        sample_logprob=sample,
        pad_id=prior.pad_id,
        target=policy.target,
    )


def check_can_be_cached(policy: EditPolicy) -> None:
    """Raise a ValueError for a policy whose decisions a cache can't store."""
    if policy.num_draws > 1:
        if policy.redraw != "never":
            raise ValueError(
                f"a decision cache keeps the {policy.num_draws} draws of each label, but "
                "redraw='epoch' draws again in every epoch; use redraw='never', or no cache"
            )
    elif policy.region == "all" and policy.sampler == "full":
        raise ValueError(
            "a decision cache keeps the candidates of each selected token, and with region='all' "
            "and sampler='full' that is the whole vocabulary for every token; use "
            "EditPolicy.distill(redraw='never'), whose draws are kept, sampler='top_k', or no cache"
        )


def _decide(
    prior: BasePrior,
    policy: EditPolicy,
    batch: TokenBatch,
    digests: np.ndarray,
    wanted: Tensor,
    draws: Draws,
    num_sampled: int,
) -> tuple[np.ndarray, Decisions, Tensor]:
    """Score the documents with `wanted` tokens, (M,) bool.

    Returns the numbers of these documents, their decisions, and log P of the sample.
    """
    scorable = prior.scorable(batch)
    where = (wanted & scorable).nonzero().squeeze(-1)
    predictions = prior.predict(batch, where)
    everywhere = torch.ones_like(where, dtype=torch.bool)
    sample = predictions.exact_logprob(evenly_spread(everywhere, num_sampled))
    scores = predictions.score(policy)
    check_finite(scores.is_finite)
    dropped = policy.drops(scores.logprob)
    to_resample = policy.selects(scores.logprob) & ~dropped
    is_selected, is_dropped = fetch(to_resample, dropped)
    selected = is_selected.nonzero().squeeze(-1)
    if policy.num_draws > 1:  # the ids that were drawn, and their counts
        uniforms = batch.uniforms(where, draws, policy.num_draws)
        drawn = predictions.draw(policy, scores, to_resample, uniforms)
        counted = count_draws(fetch(drawn)[0][selected])
        found = [Candidates(counted[..., 0], counted[..., 1])]
        impossible = 0.0
    else:
        found = list(predictions.candidates(policy, selected))
        impossible = -math.inf
    if policy.sampler == "top_k" and found:  # k columns: all of them in one wait
        found = [Candidates(*map(torch.cat, zip(*((f.ids, f.logits) for f in found), strict=True)))]
    ids, logits = [torch.zeros(0, dtype=torch.int64)], []
    num_candidates = torch.zeros(len(where), dtype=torch.int64)
    widths = [num_candidates[:0]]
    for candidates in found:
        host_ids, host_logits = fetch(candidates.ids, candidates.logits)
        possible = host_logits > impossible
        widths.append(possible.sum(-1))
        ids.append(host_ids[possible])
        logits.append(host_logits[possible])
    num_candidates[selected] = torch.cat(widths)
    decided = is_selected | is_dropped
    unscored = (wanted & ~scorable).nonzero().squeeze(-1)
    # Documents without a scorable token are stored, too, with no decided tokens.
    document = batch.documents.document
    numbers = torch.unique(document[wanted])
    keys, checks = digests[numbers.numpy()].T

    def per_document(tokens: Tensor) -> Array:
        place = torch.searchsorted(numbers, document[tokens])
        return torch.bincount(place, minlength=len(numbers)).numpy()

    return (
        numbers.numpy(),
        Decisions.of(
            keys=keys,
            checks=checks,
            counts=per_document(where[decided]),
            position=batch.documents.position[where[decided]].numpy(),
            num_candidates=num_candidates[decided].numpy(),
            ids=torch.cat(ids).numpy(),
            weights=torch.cat(logits) if logits else torch.zeros(0),
            num_unscored=per_document(unscored),
            unscored=batch.documents.position[unscored].numpy(),
        ),
        sample,
    )


def _draw(
    policy: EditPolicy,
    batch: TokenBatch,
    decisions: Decisions,
    at: Tensor,
    draws: Draws,
) -> Tensor:
    """Draw a candidate for each of the selected tokens `at`, (n,) int64 of the M: (n,) int64."""
    widths = torch.from_numpy(decisions.num_candidates.astype(np.int64))
    widths = widths[widths > 0]
    if len(widths) == 0:
        return at
    all_ids, all_logits = torch.from_numpy(decisions.ids), decisions.weights.float()
    uniforms = batch.uniforms(at, draws)
    tokens = batch.tokens[at]
    ends = widths.cumsum(0)
    drawn = []
    rows_at_once = max(1, MAX_DRAWN_ELEMENTS // int(widths.max()))
    for first in range(0, len(at), rows_at_once):
        rows = slice(first, first + rows_at_once)
        inside = torch.arange(int(widths[rows].max())) < widths[rows].unsqueeze(-1)
        # The candidates of these tokens are in one run, in the order of the places inside.
        of_rows = slice(int(ends[first] - widths[first]), int(ends[rows][-1]))
        ids = torch.zeros(inside.shape, dtype=torch.int64).masked_scatter_(inside, all_ids[of_rows])
        logits = torch.full(inside.shape, -math.inf).masked_scatter_(inside, all_logits[of_rows])
        candidates = Candidates(ids, logits)
        drawn.append(draw_among(candidates, tokens[rows], uniforms[rows], policy.temperature))
    return torch.cat(drawn)
