"""Plans the prior's forward passes over the documents of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .documents import Documents

# The cost of another pass of the prior, in tokens. On a GPU it is the launch of all kernels; where
# weights are sharded over ranks, it is gathering all of them.
PASS_COST = {"cpu": 64, "gpu": 2048, "sharded": 2**15}


@dataclass(frozen=True)
class Pass:
    """One forward pass of the prior over some documents."""

    # (rows, L) int64: each document in its own row, padded on the right with id 0. Here a causal
    # model needs no mask: a document never sees the padding after it nor another document, whatever
    # attention the model uses. And its scores do not depend on the given layout.
    input_ids: Tensor
    members: Tensor  # (m,) int64, which of the M tokens take part
    cells: Tensor  # (m,) int64, the place of each of them in the flattened `input_ids`


def plan_passes(
    documents: Documents,
    tokens: Tensor,
    needed: Tensor,
    *,
    pass_cost: int,
    length_class: Callable[[int], int] | None = None,
) -> list[Pass]:
    """Plan the passes of the prior over some documents.

    Args:
        documents: of the batch; M tokens.
        tokens: (M,) int64.
        needed: (N,) bool, the documents to score.
        pass_cost: how many tokens of padding cost as much as another pass.
        length_class: documents share a pass only if their lengths have the same class; None: all
            may.
    """
    chosen = needed.numpy().nonzero()[0]
    lengths = np.asarray(documents.lengths)[chosen]
    classes = np.array([0 if length_class is None else length_class(n) for n in lengths.tolist()])
    passes = []
    for one_class in np.unique(classes):
        some, own_lengths = chosen[classes == one_class], lengths[classes == one_class]
        for places in group_by_length(own_lengths.tolist(), pass_cost):
            longest = int(own_lengths[places].max())
            passes.append(_padded_pass(documents, tokens, some[places], longest))
    return passes


def _padded_pass(
    documents: Documents, tokens: Tensor, chosen: npt.NDArray[np.int64], L: int
) -> Pass:
    row = np.full(documents.num_documents, -1)
    row[chosen] = np.arange(len(chosen))
    row_of_token = row[documents.document.numpy()]
    members = (row_of_token >= 0).nonzero()[0]
    cells = row_of_token[members] * L + documents.position.numpy()[members]
    rows = np.zeros(len(chosen) * L, dtype=np.int64)
    rows[cells] = tokens.numpy()[members]
    input_ids = torch.from_numpy(rows).view(len(chosen), L)
    return Pass(input_ids, torch.from_numpy(members), torch.from_numpy(cells))


def group_by_length(lengths: list[int], pass_cost: int) -> list[list[int]]:
    """Split documents into groups, each padded to its longest, at the least cost.

    A group of n documents of at most L tokens costs n * L + `pass_cost` tokens. In the best split,
    each group is a run of the documents in the order of their lengths.

    Returns:
        The numbers of the documents of each group, ascending, so that a batch that is not split
        keeps its order.
    """
    if not lengths:
        return []
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    longest_first = np.array([lengths[number] for number in order])
    # Documents of one length are never split up, so a group can only begin where lengths change.
    stops = np.flatnonzero(np.diff(longest_first, prepend=0, append=0))
    # cost[i]: the least cost of all documents up to stops[i]; begin[i]: where the last group among
    # them begins.
    cost = np.zeros(len(stops))
    begin = np.zeros(len(stops), dtype=int)
    for i in range(1, len(stops)):
        counts = stops[i] - stops[:i]
        totals = cost[:i] + longest_first[stops[:i]] * counts + pass_cost
        begin[i] = totals.argmin()
        cost[i] = totals[begin[i]]
    groups, i = [], len(stops) - 1
    while i > 0:
        groups.append(sorted(order[stops[begin[i]] : stops[i]]))
        i = int(begin[i])
    return groups[::-1]
