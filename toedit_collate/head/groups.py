"""Groups of ids that stand for one token: the log of the sum of their probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..transfer import send
from .projection import Head


@dataclass(frozen=True)
class IdGroups:
    """A group of ids for each of n rows."""

    row: Tensor  # (m,) int64, ascending: the row of each of the m members
    ids: Tensor  # (m,) int64, the members
    num_rows: int  # n; a row may have no members


@dataclass(frozen=True)
class LeadingMembers:
    """The most probable member of each of n groups, and how much the others add to it.

    P of a group is P of this member times e^surplus. So a group is below a cut where the member is
    below the cut minus the surplus.
    """

    ids: Tensor  # (n,) int64; 0 where a group is empty
    # (n,) float32, log of (sum of all members' P / P of `ids`), nats; 0 for a group of one,
    # -inf for an empty one
    surplus: Tensor


def leading_members(head: Head, hidden: Tensor, groups: IdGroups, *, budget: int) -> LeadingMembers:
    """Find the most probable member of each group; only groups of several need logits.

    `hidden` is (n, D), on the device of the head like the groups. At most `budget` of its numbers
    are copied at once.
    """
    # bincount would make the host wait for a GPU.
    counts = groups.row.new_zeros(groups.num_rows)
    counts.index_add_(0, groups.row, torch.ones_like(groups.row))
    start = counts.cumsum(0) - counts
    leading = torch.zeros(groups.num_rows, dtype=torch.int64, device=groups.ids.device)
    surplus = torch.zeros(groups.num_rows, device=groups.ids.device)
    surplus.masked_fill_(counts == 0, -math.inf)
    at = start.clamp(max=max(0, len(groups.ids) - 1))
    if len(groups.ids):
        leading = torch.where(counts > 0, groups.ids[at], 0)
    several = (counts[groups.row] > 1).nonzero().squeeze(1)
    row, ids = groups.row[several], groups.ids[several]
    if not len(row):
        return LeadingMembers(leading, surplus)
    rows = max(1, budget // hidden.shape[-1])
    pieces = zip(row.split(rows), ids.split(rows), strict=True)
    logits = torch.cat([head.observed_logits(hidden[r], i) for r, i in pieces])
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


@dataclass(frozen=True)
class GroupColumns:
    """Turns logits of V ids into those of G groups: the log-sum-exp of their members."""

    ids: Tensor  # (G,) int64, what the groups stand for, ascending
    leading: Tensor  # (G,) int64, the lowest member of each
    # of the groups of 2, of 3 and 4, of 5 to 8, ... members: their columns (g,), their members
    # (g, m), and which of these (g, m) only fill the rows up
    several: tuple[tuple[Tensor, Tensor, Tensor], ...]

    @classmethod
    def of(cls, group: Tensor) -> GroupColumns:
        """The columns of (V,) int64, what each id stands for, -1 for nothing; on the host.

        Example:
            >>> columns = GroupColumns.of(torch.tensor([9, 7, 9]))
            >>> columns.logits(torch.tensor([[0.0, 1.0, 2.0]]), -math.inf)
            tensor([[1.0000, 2.1269,   -inf]])
        """
        members = group.argsort(stable=True)
        members = members[group[members] >= 0]
        ids, counts = group[members].unique_consecutive(return_counts=True)
        start = counts.cumsum(0) - counts
        several, size = [], 2
        while size < 2 * max(counts.tolist(), default=0):
            columns = ((counts > size // 2) & (counts <= size)).nonzero().squeeze(-1)
            if len(columns):
                place = torch.arange(size).expand(len(columns), size)
                fills_up = place >= counts[columns, None]
                place = start[columns, None] + place.masked_fill(fills_up, 0)
                several.append((columns, members[place], fills_up))
            size *= 2
        return cls(ids, members[start], tuple(several))

    @property
    def nbytes(self) -> int:
        """Size of the tensors."""
        return sum(one.nbytes for one in (self.ids, self.leading, *chain(*self.several)))

    def to(self, device: torch.device) -> GroupColumns:
        """The same on a device."""
        several: Any = tuple(tuple(send(one, device) for one in some) for some in self.several)
        return GroupColumns(send(self.ids, device), send(self.leading, device), several)

    def logits(self, logits: Tensor, last: Tensor | float) -> Tensor:
        """(n, V) logits of any floating dtype -> (n, G + 1) float32, with `last` in the end.

        A group of one keeps its logit bit for bit.
        """
        found = logits.new_empty(len(logits), len(self.leading) + 1, dtype=torch.float32)
        found[:, :-1] = logits.index_select(1, self.leading)
        found[:, -1:] = last
        for columns, members, fills_up in self.several:
            some = logits.index_select(1, members.flatten()).view(-1, *members.shape).float()
            some.masked_fill_(fills_up, -math.inf)
            most = some.amax(-1)
            total = (some - most.unsqueeze(-1)).double().exp_().sum(-1)  # NaN if all are -inf
            found[:, columns] = torch.where(most == -math.inf, most, most + total.log().float())
        return found
