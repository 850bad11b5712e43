"""Log P of observed tokens, with as little of the vocabulary projection as exactness allows."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..head import kernels
from ..transfer import fetch, on_host, send
from .projection import PIECE_ELEMENTS, Head, project_rows, tile_elements

# Where asking which rows are still open is free, the tiles of likely competitors begin with so many
# ids, and each ends at so many times as many.
FIRST_TILE_IDS = 64
GROWTH = 4
MAX_LIKELY_SHARE = 1 / 6  # of the vocabulary, in all of them
# Elsewhere there is one such tile, of this share of the vocabulary, and at least so many ids: a
# larger one costs more, a smaller one leaves more rows open (`toedit bench --parts survivors` shows
# both).
ONLY_TILE_SHARE = 1 / 128
ONLY_TILE_IDS = 256
# The tiles of the final sum are at least this wide.
MIN_COLUMNS = 512
ALIGNED_IDS = 64
# A row is given up only if its bound lies so far under the cut (nats) that rounding can't matter.
# So which rows are given up, by whatever order of ids, decides nothing.
MARGIN = 1e-4
_LOG_OVERFLOW = 88.0  # e to this is about the largest float32
# Positions at which the likely competitors are measured.
NUM_MEASURED = 512


@dataclass(frozen=True)
class Competitors:
    """The ids that take most of the probability, on average, the likeliest first.

    Attributes:
        order: (m,) int64.
        place: (V,) int64, where in `order` an id stands; m if it isn't there.
        stops: where each tile of them ends; the last is m.
    """

    order: Tensor
    place: Tensor
    stops: tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """Log P of n observed tokens.

    Attributes:
        logprob: (n,) float32 on the head's device, nats; where `is_open` is False, this may be an
            upper bound that lies under the cut.
        is_open: (n,) bool, on the host: False where log P is known to lie under the cut.
        is_finite: (n,) bool, on the host: False where the prior's numbers are NaN or infinite.
    """

    logprob: Tensor
    is_open: Tensor
    is_finite: Tensor


def measure_competitors(head: Head, hidden: Tensor) -> Competitors | None:
    """Order the ids by their mean probability at some positions: (n, D) hidden states.

    An order decides how soon rows can be given up, and nothing else. That of the ids themselves
    would do, since tokenizers number frequent tokens first; a measured one needs half the ids.

    Returns:
        The order; None if a logit is NaN or infinite: then no row must be given up, so that it is
        told. The host waits for the device.
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
    """Where the tiles of likely competitors end."""
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
    """Log P of one id per row, exact wherever it can matter.

    Summing over a part of the vocabulary bounds P from above. So all rows are first compared with
    their likely competitors, and those whose bound then lies under `lowest_cut` are given up: early
    reject. The others are summed over the whole vocabulary. The host waits for the device once.

    Args:
        head: of the prior; V ids.
        hidden: (n, D), the hidden states that predict `ids`.
        ids: (n,) int64, in [0, V), on the device of the head.
        lowest_cut: nats. No decision turns under it (`EditPolicy.lowest_cut`). It may differ from
            row to row, (n,), without the kernel.
        competitors: the ids to visit first; without them all rows are summed to the end.
        with_kernel: whether the GPU kernel sums over the vocabulary.
        budget: number of logits to hold at once; None: by n.
    """
    hidden = head.ready(hidden)
    budget = budget or tile_elements(len(ids), head.vocab_size, hidden.device)
    if competitors is None or len(ids) == 0:
        logprob = exact_logprob(head, hidden, ids, budget=budget, with_kernel=with_kernel)
        return Scores(
            logprob,
            *fetch(~(logprob < lowest_cut), hidden.isfinite().all(-1) & logprob.isfinite()),
        )

    observed = head.observed_logits(hidden, ids)
    rows = torch.arange(len(ids), device=ids.device)
    odds = torch.zeros_like(observed)  # of the competitors that were visited, to the observed id
    for start, stop in itertools.pairwise((0, *competitors.stops)):
        odds[rows] += _likely_odds(
            head, hidden, ids, observed, competitors.place, rows,
            competitors.order[start:stop], start, budget,
        )  # fmt: skip
        # ~(<) and not (>=), so that NaN stays open and comes out as NaN.
        is_open, is_finite = fetch(
            ~(-odds.log1p() < lowest_cut - MARGIN), observed.isfinite() & ~odds.isnan()
        )
        rows = send(is_open.nonzero().squeeze(-1), hidden.device)
    # Odds that overflow say no more than that.
    logprob = -odds.log1p().clamp_(max=_LOG_OVERFLOW)
    cut_of_rows = lowest_cut[rows] if isinstance(lowest_cut, Tensor) else lowest_cut
    logprob[rows] = _sum_all(
        head, hidden[rows], ids[rows], observed[rows], cut_of_rows, budget, with_kernel
    )
    if on_host(hidden) or hidden.dtype == torch.float16:
        # In float16 any logit may overflow; otherwise `measure_competitors` has seen that the
        # weights are finite.
        is_open, late = fetch(~(logprob < lowest_cut), logprob.isfinite())
        is_finite &= late
    return Scores(logprob, is_open, is_finite)


def _likely_odds(
    head: Head, hidden: Tensor, ids: Tensor, observed: Tensor, place: Tensor, rows: Tensor,
    columns: Tensor, start: int, budget: int,
) -> Tensor:  # fmt: skip
    """Odds of some likely competitors to the observed id, at some rows: (r,) float32.

    Args:
        head: V ids.
        hidden: (n, D).
        ids: (n,) int64.
        observed: (n,) float32, the logits of `ids`.
        place: (V,) int64, where an id stands among all likely competitors.
        rows: (r,) int64, which of the n.
        columns: (m,) int64, the competitors, of which the first stands at `start`.
        start: where the first of them stands among all likely competitors.
        budget: number of logits to hold at once.
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
    head: Head,
    hidden: Tensor,
    ids: Tensor,
    *,
    budget: int | None = None,
    with_kernel: bool = False,
) -> Tensor:
    """Log P of one id per row, summed over the whole vocabulary; no wait for the device.

    Args:
        head: of the prior; V ids.
        hidden: (n, D), the hidden states that predict `ids`.
        ids: (n,) int64, in [0, V).
        budget: number of logits to hold at once; None: by n.
        with_kernel: whether the GPU kernel sums over the vocabulary.

    Returns:
        (n,) float32, nats; NaN where the prior's numbers are NaN.
    """
    hidden = head.ready(hidden)
    if len(ids) == 0:
        return hidden.new_zeros(0, dtype=torch.float32)
    budget = budget or tile_elements(len(ids), head.vocab_size, hidden.device)
    if head.weight is None:
        pieces = [
            tile.float().log_softmax(-1).gather(-1, own.unsqueeze(-1)).squeeze(-1)
            for tile, own in project_rows(head, hidden, ids, most=budget)
        ]
        return torch.cat(pieces)
    observed = head.observed_logits(hidden, ids)
    return _sum_all(head, hidden, ids, observed, None, budget, with_kernel)


def _sum_all(
    head: Head,
    hidden: Tensor,
    ids: Tensor,
    observed: Tensor,
    cut: float | Tensor | None,
    budget: int,
    with_kernel: bool,
) -> Tensor:
    """Log P by the whole vocabulary; where asking is free, rows under the cut are given up."""
    rows_at_once = max(1, budget // MIN_COLUMNS)
    if len(ids) > rows_at_once:
        pieces = []
        for some in torch.arange(len(ids), device=ids.device).split(rows_at_once):
            own_cut = cut[some] if isinstance(cut, Tensor) else cut
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
            bound = _logprob(observed[rows], others[rows])
            is_open = ~(bound < (cut[rows] if isinstance(cut, Tensor) else cut) - MARGIN)
            if not is_open.all():
                rows = rows[is_open]
                states, own = hidden[rows], ids[rows]
    return _logprob(observed, others)


def _logsumexp_of_others(tile: Tensor, place: Tensor, start: int) -> Tensor:
    """Log-sum-exp of each row of a tile but for the observed id: (r,) float32; changes the tile."""
    _replace_observed(tile, place, start, -math.inf)
    rows = PIECE_ELEMENTS // tile.shape[-1] if on_host(tile) else len(tile)
    return torch.cat([piece.float().logsumexp(-1) for piece in tile.split(max(1, rows))])


def _replace_observed(tile: Tensor, place: Tensor, start: int, value: float) -> None:
    """Put a value where the observed ids stand in an (r, m) tile, whose first column is `start`.

    They are at `place`, (r,) int64; those that are not in the tile change nothing.
    """
    column = (place - start).unsqueeze(-1)
    inside = (column >= 0) & (column < tile.shape[-1])
    column = column.clamp_(0, tile.shape[-1] - 1)
    tile.scatter_(-1, column, tile.gather(-1, column).masked_fill_(inside, value))


def _logprob(observed: Tensor, others: Tensor) -> Tensor:
    """Log P = -log(1 + sum_others / e^observed): keeps its precision where P is close to 1."""
    return -F.softplus(others - observed)
