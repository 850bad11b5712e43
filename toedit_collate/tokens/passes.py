"""How the prior goes through the documents of a batch: padded rows, or one packed row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .documents import Documents

# What one more pass of the prior costs, in tokens: on a CPU hardly anything; on a GPU the launch of
# all its kernels; where weights are spread over ranks, gathering all of them.
PASS_COST = {"cpu": 64, "gpu": 2048, "sharded": 2**15}


@dataclass(frozen=True)
class Pass:
    """One pass of the prior over some of the documents.

    Attributes:
        arguments: of the trunk.
        members: (m,) int64, which of the M tokens these are.
        cells: (m,) int64, where each of them stands in the flattened `input_ids`.
    """

    arguments: dict[str, Tensor | int]
    members: Tensor
    cells: Tensor


def plan_passes(
    documents: Documents,
    tokens: Tensor,
    needed: Tensor,
    *,
    packed: bool,
    pass_cost: int,
    length_class: Callable[[int], int] | None = None,
) -> list[Pass]:
    """How the prior goes through some documents.

    Args:
        documents: of the batch.
        tokens: (M,) int64, their tokens.
        needed: (N,) bool, which documents are to be scored.
        packed: lay them out behind one another in one row; otherwise, one to a row.
        pass_cost: tokens of padding that are worth a pass less.
        length_class: documents share a pass only where it says the same of their lengths; None:
            all may. For models whose positions depend on the longest document of a pass.
    """
    chosen = needed.numpy().nonzero()[0]
    if length_class is not None:
        classes = np.array([length_class(documents.lengths[number]) for number in chosen])
        parts = [torch.zeros_like(needed) for _ in np.unique(classes)]
        for part, known_by in zip(parts, np.unique(classes), strict=True):
            part[torch.from_numpy(chosen[classes == known_by])] = True
        planned = (
            plan_passes(documents, tokens, part, packed=packed, pass_cost=pass_cost)
            for part in parts
        )
        return [one for some in planned for one in some]
    if packed:
        return [_packed_pass(documents, tokens, torch.from_numpy(chosen))]
    lengths = np.asarray(documents.lengths)[chosen]
    return [
        _padded_pass(documents, tokens, chosen[places], int(lengths[places].max()))
        for places in group_by_length(lengths.tolist(), pass_cost)
    ]


def _padded_pass(
    documents: Documents, tokens: Tensor, chosen: npt.NDArray[np.int64], L: int
) -> Pass:
    """Documents one to a row, padded on the right with id 0 to L tokens.

    In this layout a causal model needs no mask: a document never sees the padding behind it, nor
    another document, whichever attention (or other mixing of tokens) the model uses. It also makes
    the score of a document the same however it was padded or packed.
    """
    row = np.full(documents.num_documents, -1)
    row[chosen] = np.arange(len(chosen))
    row_of_token = row[documents.document.numpy()]
    members = (row_of_token >= 0).nonzero()[0]
    cells = row_of_token[members] * L + documents.position.numpy()[members]
    rows = np.zeros(len(chosen) * L, dtype=np.int64)
    rows[cells] = tokens.numpy()[members]
    input_ids = torch.from_numpy(rows).view(len(chosen), L)
    return Pass({"input_ids": input_ids}, torch.from_numpy(members), torch.from_numpy(cells))


def _packed_pass(documents: Documents, tokens: Tensor, chosen: Tensor) -> Pass:
    """Documents one behind another in one row, for an attention that keeps to each.

    It is told by `position_ids` that restart, and by the borders of the documents, under the names
    that transformers gives them.
    """
    wanted = torch.zeros(documents.num_documents, dtype=torch.bool).index_fill_(0, chosen, True)
    members = wanted[documents.document].nonzero().squeeze(-1)
    lengths = torch.tensor(documents.lengths)[chosen]
    borders = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
    longest = int(lengths.max())
    arguments: dict[str, Tensor | int] = {
        "input_ids": tokens[members].unsqueeze(0),
        "position_ids": documents.position[members].unsqueeze(0),
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    return Pass(arguments, members, torch.arange(len(members)))


def group_by_length(lengths: list[int], pass_cost: int) -> list[list[int]]:
    """Split documents into groups, each padded to its longest, at the least cost.

    A group of n documents, of which the longest has L tokens, costs n * L + `pass_cost`. In the
    best split each group is a run of the documents in the order of their lengths.

    Args:
        lengths: of N documents, in tokens.
        pass_cost: in tokens.

    Returns:
        For each group, the numbers of its documents, ascending: so that a batch which is not split
        is scored as it came.
    """
    if not lengths:
        return []
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    longest_first = np.array([lengths[number] for number in order])
    # Documents of one length are never parted, so a group can only begin where lengths change.
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
