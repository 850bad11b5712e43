"""The documents of a batch: padded on either side, packed, or flattened without padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.integer]

# What one more pass of the prior costs, in tokens: on a CPU hardly anything; on a GPU the launch of
# all its kernels; where weights are spread over ranks, gathering all of them.
PASS_COST = {"cpu": 64, "gpu": 2048, "sharded": 2**15}


@dataclass(frozen=True)
class Documents:
    """The real tokens of a batch, document after document.

    M is the number of real tokens, N the number of documents.

    Attributes:
        index: (M,) int64, where each token stands in the flattened (B * T) batch; ascending.
        document: (M,) int64, the number of its document, in [0, N); ascending.
        position: (M,) int64, its position in the document, from 0.
        start: (N,) int64, which of the M tokens is the first of each document.
        lengths: N numbers of tokens, on the CPU.
    """

    index: Tensor
    document: Tensor
    position: Tensor
    start: Tensor
    lengths: list[int]

    @property
    def num_tokens(self) -> int:
        """M: tokens without padding."""
        return self.index.numel()

    @property
    def num_documents(self) -> int:
        """N."""
        return len(self.lengths)


def find_documents(
    input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
) -> Documents:
    """Find the documents of a batch.

    A document ends with its row, and where `position_ids` do not go up by one (the rule that
    transformers uses for packed rows). Padding belongs to no document.

    Args:
        input_ids: (B, T) int64.
        attention_mask: (B, T), 0 at padding; None: there is none.
        position_ids: (B, T) int64, restarting at each document; None: a document is a row.

    Example:
        >>> ids = torch.tensor([[7, 8, 9, 5, 6]])
        >>> find_documents(ids, None, torch.tensor([[0, 1, 2, 0, 1]])).lengths
        [3, 2]
    """
    B, T = input_ids.shape
    device = input_ids.device
    if attention_mask is None:
        index = torch.arange(B * T, device=device)
    else:
        index = attention_mask.reshape(-1).nonzero().squeeze(-1)
    row = index // T
    first = torch.ones_like(index, dtype=torch.bool)
    first[1:] = row[1:] != row[:-1]
    if position_ids is not None:
        given = position_ids.reshape(-1)[index]
        first[1:] |= given[1:] != given[:-1] + 1
    document = first.cumsum(0) - 1
    start = first.nonzero().squeeze(-1)
    position = torch.arange(index.numel(), device=device) - start[document]
    ends = torch.cat([start[1:], start.new_tensor([index.numel()])]) if len(start) else start
    return Documents(index, document, position, start, (ends - start).tolist())


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
    documents: Documents, tokens: Tensor, needed: Tensor, *, packed: bool, pass_cost: int
) -> list[Pass]:
    """How the prior goes through some documents.

    Args:
        documents: of the batch.
        tokens: (M,) int64, their tokens.
        needed: (N,) bool, which documents are to be scored.
        packed: lay them out behind one another in one row; otherwise, one to a row.
        pass_cost: tokens of padding that are worth a pass less.
    """
    chosen = needed.nonzero().squeeze(-1)
    if packed:
        return [_packed_pass(documents, tokens, chosen)]
    lengths = [documents.lengths[number] for number in chosen.tolist()]
    return [
        _padded_pass(documents, tokens, chosen[torch.tensor(places)])
        for places in group_by_length(lengths, pass_cost)
    ]


def _padded_pass(documents: Documents, tokens: Tensor, chosen: Tensor) -> Pass:
    """Documents one to a row, padded on the right with id 0.

    In this layout a causal model needs no mask: a document never sees the padding behind it, nor
    another document, whichever attention (or other mixing of tokens) the model uses. It also makes
    the score of a document the same however it was padded or packed.
    """
    L = max(documents.lengths[number] for number in chosen.tolist())
    row = torch.full((documents.num_documents,), -1)
    row[chosen] = torch.arange(len(chosen))
    members = (row[documents.document] >= 0).nonzero().squeeze(-1)
    cells = row[documents.document[members]] * L + documents.position[members]
    rows = tokens.new_zeros(len(chosen) * L)
    rows[cells] = tokens[members]
    return Pass({"input_ids": rows.view(len(chosen), L)}, members, cells)


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
    # cost[n]: the least cost of the n longest; the last group among them begins at begin[n].
    cost = np.zeros(len(order) + 1)
    begin = np.zeros(len(order) + 1, dtype=int)
    for n in range(1, len(order) + 1):
        totals = cost[:n] + longest_first[:n] * np.arange(n, 0, -1) + pass_cost
        begin[n] = totals.argmin()
        cost[n] = totals[begin[n]]
    groups, n = [], len(order)
    while n > 0:
        groups.append(sorted(order[begin[n] : n]))
        n = int(begin[n])
    return groups[::-1]


def ranges(begin: IntArray, counts: IntArray) -> IntArray:
    """The numbers begin[i], begin[i] + 1, ... (counts[i] of them) for each i, one after another."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(begin - (ends - counts), counts)
