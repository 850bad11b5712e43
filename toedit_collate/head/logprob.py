"""Log P of observed tokens, with as little of the vocabulary projection as exactness allows."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..transfer import fetch, on_host, send
from . import kernels
from .projection import Head, exp_pieces, project_rows, tile_elements, write_at

# On a CPU, checking which rows are still open costs no wait, so competitors are visited in growing
# tiles: up to id 64, 256, 1,024, ... and at most this share of the vocabulary.
FIRST_TILE_IDS = 64
GROWTH = 4
MAX_LIKELY_SHARE = 1 / 6
# On a GPU there is one tile of competitors, of this share of the vocabulary but at least so many
# ids. A larger tile costs more, a smaller one leaves more rows open.
ONLY_TILE_SHARE = 1 / 128
ONLY_TILE_IDS = 256
MIN_COLUMNS = 512  # least width of a tile of the final sum
ALIGNED_IDS = 64
# Early reject is conservative: a row is given up only if its bound is so far below the cut (nats)
# that rounding can't matter. The order of the ids changes the speed, never the result.
MARGIN = 1e-4
_LOG_OVERFLOW = 88.0  # e to this is about the largest float32
NUM_MEASURED = 512  # positions at which the competitors are measured


@dataclass(frozen=True)
class Competitors:
    """The ids that take most of the probability on average, the most probable first."""

    order: Tensor  # (m,) int64
    place: Tensor  # (V,) int64, the place of an id in `order`; m if it isn't there
    stops: tuple[int, ...]  # where each tile of them ends; the last is m


@dataclass(frozen=True)
class Scores:
    """Log P of n observed tokens."""

    # (n,) float32 on the head's device, nats; where `is_open` is False, this may be an upper
    # bound below the cut
    logprob: Tensor
    is_open: Tensor  # (n,) bool on the host, False where log P is known to be below the cut
    is_finite: Tensor  # (n,) bool on the host, False where the prior's numbers are NaN or infinite


def measure_competitors(head: Head, hidden: Tensor) -> Competitors | None:
    """Order the ids by their mean probability at some positions: (n, D) hidden states.

    The order changes the speed, never the result. Tokenizers number frequent tokens first, so the
    order of the ids would do, but a measured one needs half the ids.

    Returns:
        The order; None if a logit is NaN or infinite, which must not be hidden by early reject. The
        host waits for the device.
    """
    hidden = head.ready(hidden)
    if len(hidden) > NUM_MEASURED:
        places = torch.linspace(0, len(hidden) - 1, NUM_MEASURED).long()
        hidden = hidden[send(places, hidden.device)]
    V = head.vocab_size
    mean = torch.zeros(V, device=hidden.device)
    budget = tile_elements(len(hidden), V, hidden.device)
    for (logits,) in project_rows(head, hidden, most=budget):
        mean += logits.softmax(-1, dtype=torch.float32).sum(0)
    (is_finite,) = fetch(mean.isfinite().all())
    if not is_finite:
        return None
    stops = _tiles(V, only_one=not on_host(hidden))
    order = mean.topk(stops[-1]).indices
    place = torch.full((V,), len(order), device=hidden.device)
    place[order] = torch.arange(len(order), device=hidden.device)
    return Competitors(order, place, stops)


def _tiles(vocab_size: int, *, only_one: bool) -> tuple[int, ...]:
    """Where the tiles of competitors end."""
    if only_one:
        return (min(max(ONLY_TILE_IDS, int(vocab_size * ONLY_TILE_SHARE)), vocab_size),)
    stops = [min(FIRST_TILE_IDS, vocab_size)]
    while (stop := stops[-1] * GROWTH) <= vocab_size * MAX_LIKELY_SHARE:
        stops.append(stop)
    return tuple(stops)


def score_observed(
    head: Head,
    hidden: Tensor,
    ids: Tensor,
    *,
    lowest_cut: float | Tensor,
    competitors: Competitors | None = None,
    with_kernel: bool = False,
    budget: int | None = None,
) -> Scores:
    """Log P of one id per row, exact wherever a decision depends on it.

    The sum over a part of the vocabulary bounds P from above. So all rows are first compared with
    their competitors. Rows whose bound is below `lowest_cut` need no other ids: early reject. The
    others are summed over the whole vocabulary. The host waits for the device once.

    Args:
        head: of the prior; V ids.
        hidden: (n, D), the hidden states that predict `ids`.
        ids: (n,) int64, in [0, V), on the device of the head.
        lowest_cut: nats, (n,) or one number; no decision changes below it.
        competitors: the ids to sum first; None: all rows are summed over the whole vocabulary.
        with_kernel: whether the GPU kernel computes the sums.
        budget: number of logits to hold at once; None: depends on n.
    """
    hidden = head.ready(hidden)
    budget = budget or tile_elements(len(ids), head.vocab_size, hidden.device)
    if competitors is None or len(ids) == 0:
        logprob = exact_logprob(head, hidden, ids, budget=budget, with_kernel=with_kernel)
        return Scores(
            logprob, *fetch(~(logprob < lowest_cut), hidden.isfinite().all(-1) & logprob.isfinite())
        )

    cut = lowest_cut
    if not isinstance(cut, Tensor):
        if cut == math.inf and hidden.dtype != torch.float16:
            # No decision depends on log P, and `measure_competitors` has seen finite weights.
            upper = hidden.new_zeros(len(ids), dtype=torch.float32)
            return Scores(upper, *fetch(upper != 0, hidden.sum(-1).isfinite()))
        cut = torch.full(ids.shape, cut, dtype=torch.float32, device=ids.device)
    observed = head.observed_logits(hidden, ids)
    rows = torch.arange(len(ids), device=ids.device)
    odds = torch.zeros_like(observed)  # of the competitors so far, to the observed id
    for start, stop in itertools.pairwise((0, *competitors.stops)):
        odds[rows] += _likely_odds(
            head, hidden, ids, observed, competitors.place, rows,
            competitors.order[start:stop], start, budget,
        )  # fmt: skip
        # ~(<) and not (>=), so that NaN stays open and comes out as NaN.
        is_open, is_finite = fetch(
            ~(-odds.log1p() < cut - MARGIN), observed.isfinite() & ~odds.isnan()
        )
        rows = send(is_open.nonzero().squeeze(-1), hidden.device)
    logprob = -odds.log1p().clamp_(max=_LOG_OVERFLOW)
    logprob[rows] = _sum_all(
        head, hidden[rows], ids[rows], observed[rows], cut[rows], budget, with_kernel
    )
    if on_host(hidden) or hidden.dtype == torch.float16:
        # In float16 any logit may overflow; otherwise `measure_competitors` has seen that the
        # weights are finite.
        is_open, late = fetch(~(logprob < cut), logprob.isfinite())
        is_finite &= late
    return Scores(logprob, is_open, is_finite)


def _likely_odds(
    head: Head, hidden: Tensor, ids: Tensor, observed: Tensor, place: Tensor, rows: Tensor,
    columns: Tensor, start: int, budget: int,
) -> Tensor:  # fmt: skip
    """Odds of the competitors `columns` to the observed ids at the `rows`: (r,) float32.

    `place` is that of `Competitors`, and `start` the place of the first of the `columns`.
    """
    odds = []
    for some in rows.split(max(1, budget // len(columns))):
        tile = head.logits_of(hidden if len(some) == len(ids) else hidden[some], columns)
        overflow = tile.isinf().any(-1) if tile.numel() and hidden.dtype == torch.float16 else None
        tile.sub_(observed[some].unsqueeze(-1)).exp_()
        _replace_observed(tile, place[ids[some]], start, 0.0)
        total = tile.sum(-1)
        odds.append(total if overflow is None else total.masked_fill_(overflow, math.nan))
    return torch.cat(odds) if odds else observed[:0]


def exact_logprob(
    head: Head, hidden: Tensor, ids: Tensor, *, budget: int | None = None, with_kernel: bool = False
) -> Tensor:
    """Log P of one id per row over the whole vocabulary, (n,) float32 nats; no wait for the device.

    Arguments as for `score_observed`. NaN where the prior's numbers are NaN.
    """
    hidden = head.ready(hidden)
    if len(ids) == 0:
        return hidden.new_zeros(0, dtype=torch.float32)
    budget = budget or tile_elements(len(ids), head.vocab_size, hidden.device)
    observed = head.observed_logits(hidden, ids)
    return _sum_all(head, hidden, ids, observed, None, budget, with_kernel)


def _sum_all(
    head: Head,
    hidden: Tensor,
    ids: Tensor,
    observed: Tensor,
    cut: Tensor | None,
    budget: int,
    with_kernel: bool,
) -> Tensor:
    """Log P over the whole vocabulary; on a CPU, rows below the cut are given up early."""
    most = max(1, budget // MIN_COLUMNS)  # rows at once
    if len(ids) > most:
        pieces = []
        for start in range(0, len(ids), most):
            some = slice(start, start + most)
            own_cut = None if cut is None else cut[some]
            pieces.append(
                _sum_all(
                    head, hidden[some], ids[some], observed[some], own_cut, budget, with_kernel
                )
            )
        return torch.cat(pieces)
    others = torch.full_like(observed, -math.inf)
    rows = torch.arange(len(ids), device=ids.device)
    states, own = hidden, ids
    stop = 0
    while stop < head.vocab_size and len(rows):
        # Whole lines of memory, which the kernel loads at once.
        width = max(ALIGNED_IDS, budget // len(rows) // ALIGNED_IDS * ALIGNED_IDS)
        start, stop = stop, min(head.vocab_size, stop + width)
        tile = head.project(states, start, stop)
        if with_kernel:
            kernels.add_tile(others, tile, own - start)
            continue
        sums = _logsumexp_of_others(tile, own, start)
        others[rows] = torch.logaddexp(others[rows], sums)
        if cut is not None and on_host(hidden):
            is_open = ~(_logprob(observed[rows], others[rows]) < cut[rows] - MARGIN)
            if not is_open.all():
                rows = rows[is_open]
                states, own = hidden[rows], ids[rows]
    return _logprob(observed, others)


def _logsumexp_of_others(tile: Tensor, place: Tensor, start: int) -> Tensor:
    """Log-sum-exp of each row of a tile without the observed id: (r,) float32; changes the tile."""
    _replace_observed(tile, place, start, -math.inf)
    if not on_host(tile):
        return tile.float().logsumexp(-1)
    pieces = exp_pieces(tile)  # bit for bit as logsumexp, which takes 1.3 times as long
    return torch.cat([weights.sum(-1).log_().add_(shift.squeeze(-1)) for weights, shift in pieces])


def _replace_observed(tile: Tensor, place: Tensor, start: int, value: float) -> None:
    """Write a value where the observed ids are in an (r, m) tile whose first column is `start`.

    They are at `place`, (r,) int64; those outside of the tile change nothing.
    """
    column = place - start
    inside = (column >= 0) & (column < tile.shape[-1])
    column.clamp_(0, tile.shape[-1] - 1)
    values = tile.gather(-1, column.unsqueeze(-1)).squeeze(-1)
    write_at(tile, column, values.masked_fill_(inside, value))


def _logprob(observed: Tensor, others: Tensor) -> Tensor:
    """Log P = -log(1 + sum_others / e^observed): precise even where P is close to 1."""
    return -F.softplus(others - observed)
