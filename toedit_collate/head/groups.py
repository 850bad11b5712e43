"""Groups of ids that stand for one token: log of their sum, without more of the head than that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .logprob import Competitors, Scores, exact_logprob, score_observed
from .projection import Head, project_rows


@dataclass(frozen=True)
class IdGroups:
    """A group of ids for each of n rows; V ids in all.

    Attributes:
        row: (m,) int64, ascending: of which row each of the m members is.
        ids: (m,) int64, the members.
        num_rows: n. A row may have none.
    """

    row: Tensor
    ids: Tensor
    num_rows: int

    @property
    def counts(self) -> Tensor:
        """(n,) int64, the number of members of each row."""
        return torch.bincount(self.row, minlength=self.num_rows)


@dataclass(frozen=True)
class LeadingMembers:
    """The most probable member of each row, and how much the others add to it.

    Attributes:
        ids: (n,) int64; 0 where a group is empty.
        surplus: (n,) float32, log of (sum of all members' probability / that of `ids`), nats; 0 for
            a group of one, -inf for an empty one.
    """

    ids: Tensor
    surplus: Tensor


def leading_members(head: Head, hidden: Tensor, groups: IdGroups, *, budget: int) -> LeadingMembers:
    """The most probable member of each group, and the logarithm of what the others add.

    Only groups of several cost something: the logits of their members.

    Args:
        head: V ids.
        hidden: (n, D), on the device of the head.
        groups: of the n rows, on that device.
        budget: number of logits to hold at once, for a head that only its module can compute.
    """
    counts = groups.counts
    start = counts.cumsum(0) - counts
    leading = torch.zeros(groups.num_rows, dtype=torch.int64, device=groups.ids.device)
    surplus = torch.zeros(groups.num_rows, device=groups.ids.device)
    surplus.masked_fill_(counts == 0, -math.inf)
    at = start.clamp(max=max(0, len(groups.ids) - 1))
    if len(groups.ids):
        leading = torch.where(counts > 0, groups.ids[at], 0)
    several = counts[groups.row] > 1
    row, ids = groups.row[several], groups.ids[several]
    if not len(row):
        return LeadingMembers(leading, surplus)
    logits = _member_logits(head, hidden, row, ids, budget)
    most = torch.full_like(surplus, -math.inf).scatter_reduce_(0, row, logits, "amax")
    # float64: sums on a GPU are added in any order, and must come out alike in float32.
    total = torch.zeros(groups.num_rows, dtype=torch.float64, device=row.device)
    total.index_add_(0, row, (logits - most[row]).double().exp())
    of_several = counts > 1
    surplus = torch.where(of_several, total.clamp_(min=1).log().float(), surplus)
    # The lowest id of those that are the most probable.
    is_most = torch.where(logits == most[row], ids, head.vocab_size)
    found = torch.full_like(leading, head.vocab_size).scatter_reduce_(0, row, is_most, "amin")
    return LeadingMembers(
        torch.where(of_several & (found < head.vocab_size), found, leading), surplus
    )


def _member_logits(head: Head, hidden: Tensor, row: Tensor, ids: Tensor, budget: int) -> Tensor:
    """The logits of m members, (m,) float32, of the rows that they belong to."""
    if head.weight is not None:
        rows = max(1, budget // hidden.shape[-1])
        pieces = zip(row.split(rows), ids.split(rows), strict=True)
        return torch.cat([head.observed_logits(hidden[r], i) for r, i in pieces])
    logits = torch.zeros(len(row), device=row.device)
    start = 0
    for (tile,) in project_rows(head, hidden, most=budget):
        stop = start + len(tile)
        inside = (row >= start) & (row < stop)
        logits[inside] = tile[row[inside] - start, ids[inside]].float()
        start = stop
    return logits


def score_groups(
    head: Head,
    hidden: Tensor,
    leading: LeadingMembers,
    *,
    lowest_cut: float,
    competitors: Competitors | None = None,
) -> Scores:
    """Log of the sum of P over one group for each row, exact wherever it can matter.

    P of a group is that of its most probable member times what the others add; so a group lies
    under a cut where its leading member lies under the cut less the surplus. A group of one is
    scored as `score_observed` scores its id, bit for bit.

    Args:
        head: V ids.
        hidden: (n, D).
        leading: of the groups.
        lowest_cut: nats; as for `score_observed`.
        competitors: the ids to visit first; None: all are exact.
    """
    hidden = head.ready(hidden)
    cut = lowest_cut - leading.surplus
    scores = score_observed(head, hidden, leading.ids, lowest_cut=cut, competitors=competitors)
    return Scores(
        (scores.logprob + leading.surplus).clamp_(max=0), scores.is_open, scores.is_finite
    )


def exact_group_logprob(
    head: Head, hidden: Tensor, leading: LeadingMembers, *, budget: int
) -> Tensor:
    """Log of the sum of P over one group for each row: (n,) float32; no wait for the device."""
    own = exact_logprob(head, hidden, leading.ids, budget=budget)
    return (own + leading.surplus).clamp_(max=0)


def group_logits(logits: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Logits of groups of ids: the logarithm of the sum of the exponentials of the members' logits.

    Args:
        logits: (n, V), of any floating dtype.
        group: (V,) or (n, V) int64, the group of each id, in [0, W); W: none.
        num_groups: W.

    Returns:
        (n, W) float32; -inf for a group without members.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0, 2.0]])
        >>> group_logits(logits, torch.tensor([1, 0, 1]), 3)
        tensor([[1.0000, 2.1269,   -inf]])
    """
    logits = logits.float()
    shape = (len(logits), num_groups + 1)
    index = group.expand(logits.shape)
    most = logits.new_full(shape, -math.inf).scatter_reduce_(1, index, logits, "amax")
    inside = most.gather(1, index)
    weights = torch.where(inside == -math.inf, 0.0, (logits - inside).double().exp())
    total = weights.new_zeros(shape).scatter_add_(1, index, weights)
    # A group of one keeps its logit bit for bit: log(1) is 0.
    return (most + total.log().float())[:, :num_groups].masked_fill_(
        most[:, :num_groups] == -math.inf, -math.inf
    )
