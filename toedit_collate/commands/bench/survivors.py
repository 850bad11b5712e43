"""The part `survivors`: how many positions a partial sum over the vocabulary leaves undecided.

A plain computation over all logits, apart from the fast path: what early reject and lazy resample
can save on this text, not what they do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...head.candidates import surely_kept
from ...head.projection import Head
from ...policy import EditPolicy
from ..measuring.inputs import Inputs
from .states import scored_states
from .table import Column, Row, Section

_TILE_ELEMENTS = 2**22
_NUM_DRAWS = 64
_MOST = 16384  # positions: half to measure the order on, half to count at


@dataclass(frozen=True)
class Survivors:
    """Counts at n positions.

    Attributes:
        num_positions: n.
        num_selected: of them, by the whole vocabulary.
        still_open: for each size of the first tile, how many are not yet decided.
        logprob: (n,) float64, nats.
    """

    num_positions: int
    num_selected: int
    still_open: dict[int, int]
    logprob: Tensor


@torch.no_grad()
def count_survivors(
    head: Head, hidden: Tensor, ids: Tensor, order: Tensor, sizes: list[int], threshold: float
) -> Survivors:
    """Count the positions whose bound is not under the threshold after each of several tiles.

    After the ids S, P(y) is at most e^l_y / (e^l_y + sum over S without y of e^l_j).

    Args:
        head: of the prior; V ids.
        hidden: (n, D), the states that predict `ids`.
        ids: (n,) int64.
        order: (V,) int64, in which the ids are visited.
        sizes: ascending, of the first tile.
        threshold: a probability.
    """
    sizes = [*sizes, len(order)]
    cut = math.log(threshold)
    counts = torch.zeros(len(sizes), dtype=torch.int64)
    logprob = []
    rows = max(1, _TILE_ELEMENTS // len(order))
    for h, i in zip(hidden.split(rows), ids.split(rows), strict=True):
        logits = head.logits(h).double()
        own = i.unsqueeze(-1)
        observed = logits.gather(-1, own)
        odds = (logits - observed).exp_().scatter_(-1, own, 0.0)  # of each other id against y
        others = odds[:, order].cumsum(-1)[:, torch.tensor(sizes, device=order.device) - 1]
        bounds = -torch.log1p(others)
        counts += (bounds >= cut).sum(0).cpu()
        logprob.append(bounds[:, -1])
    still_open = dict(zip(sizes, counts.tolist(), strict=True))
    return Survivors(len(ids), still_open[len(order)], still_open, torch.cat(logprob))


@torch.no_grad()
def likelihood_order(head: Head, hidden: Tensor) -> Tensor:
    """The ids by their mean probability after some states, the likeliest first: (V,) int64."""
    mean = torch.zeros(head.vocab_size, dtype=torch.float64, device=hidden.device)
    for h in hidden.split(max(1, _TILE_ELEMENTS // head.vocab_size)):
        mean += head.logits(h).softmax(-1).double().sum(0)
    return mean.argsort(descending=True, stable=True)


def tile_sizes(vocab_size: int) -> list[int]:
    """64, 128, ... below the size of the vocabulary."""
    return [2**n for n in range(6, 20) if 2**n < vocab_size]


def mean_needing_candidates(logprob: Tensor, policy: EditPolicy, seed: int) -> float:
    """How many of n selected tokens need candidates: (n,) log P, the mean of several draws."""
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(_NUM_DRAWS, len(logprob), generator=generator, dtype=torch.float64)
    kept = surely_kept(uniforms, logprob.cpu(), policy, num_candidates=policy.top_k)
    return float((~kept).double().sum()) / _NUM_DRAWS


def measure_survivors(inputs: Inputs, policy: EditPolicy, *, seed: int) -> Section:
    """Count open positions by the size of the first tile, in two orders of the ids."""
    head = inputs.prior.head
    hidden, ids = scored_states(inputs, policy, most=_MOST)
    # Even positions tell the order; odd ones are counted.
    order = likelihood_order(head, hidden[::2])
    hidden, ids = hidden[1::2], ids[1::2]
    sizes = tile_sizes(head.vocab_size)
    plain_order = torch.arange(head.vocab_size, device=hidden.device)
    by_id, by_likelihood = (
        count_survivors(head, hidden, ids, o, sizes, policy.threshold) for o in (plain_order, order)
    )
    n = by_id.num_positions
    section = Section(
        "survivors",
        f"Of {n:,} positions, those still open after a first tile of the vocabulary",
        [
            Column("by id", "{by_id:,}"),
            Column("share", "{by_id_share:.2%}"),
            Column("by likelihood", "{by_likelihood:,}"),
            Column("share", "{by_likelihood_share:.2%}"),
        ],
    )
    for size in by_id.still_open:
        a, b = by_id.still_open[size], by_likelihood.still_open[size]
        name = "whole vocabulary: selected" if size == head.vocab_size else f"{size:,} ids"
        shares = {"by_id_share": a / max(n, 1), "by_likelihood_share": b / max(n, 1)}
        figures = {"num_ids": size, "by_id": a, "by_likelihood": b, **shares}
        section.rows.append(Row(name, figures))
    selected = by_id.logprob[by_id.logprob >= math.log(policy.threshold)]
    for name in ("paper", "reference_code"):
        preset = getattr(EditPolicy, name)()
        section.figures[f"need_candidates_{name}"] = mean_needing_candidates(selected, preset, seed)
    section.figures |= {"num_positions": n, "num_selected": by_id.num_selected}
    section.notes.append(
        "By likelihood: the ids by their mean probability at as many other positions. Of the "
        "{num_selected:,} selected, {need_candidates_paper:.1f} need candidates in a draw of the "
        "policy paper, {need_candidates_reference_code:.1f} in one of reference_code; the others "
        "keep their token whatever the candidates are.".format(**section.figures)
    )
    return section
