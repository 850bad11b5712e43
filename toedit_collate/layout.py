"""The documents of a batch: padded on either side, packed, or flattened without padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# A batch whose documents differ much in length is scored in several groups, each padded to its own
# longest document, once padding all to the longest would waste more than both of these.
MAX_PADDED_SHARE = 0.3
MIN_PADDED_TOKENS = 2048


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


def scoring_rows(
    documents: Documents, tokens: Tensor, needed: list[bool] | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Lay the documents out for the prior: one to a row, padded on the right.

    In this layout a causal model needs no mask: a document never sees the padding behind it, nor
    another document, whichever attention (or other mixing of tokens) the model uses. It also
    makes the score of a document the same however it was padded or packed.

    Args:
        documents: of the batch.
        tokens: (M,) int64, their tokens.
        needed: which of the N documents to lay out; None: all.

    Yields:
        rows: (n, L) int64, documents padded to the longest of their group, padding being id 0.
        members: (m,) int64, which of the M tokens stand in these rows.
        cells: (m,) int64, where each of them stands in the flattened (n * L) rows.
    """
    lengths = torch.tensor(documents.lengths)
    chosen = [n for n in range(documents.num_documents) if needed is None or needed[n]]
    for group in _groups_of_similar_length(chosen, documents.lengths):
        L = int(lengths[group].max())
        if len(group) == documents.num_documents:
            slot_of_document = torch.arange(len(group), device=tokens.device)
            members = torch.arange(tokens.numel(), device=tokens.device)
        else:
            slot = torch.full((documents.num_documents,), -1)
            slot[group] = torch.arange(len(group))
            slot_of_document = slot.to(tokens.device)
            members = (slot_of_document[documents.document] >= 0).nonzero().squeeze(-1)
        cells = slot_of_document[documents.document[members]] * L + documents.position[members]
        rows = tokens.new_zeros(len(group) * L)
        rows[cells] = tokens[members]
        yield rows.view(len(group), L), members, cells


def _groups_of_similar_length(chosen: list[int], lengths: list[int]) -> list[list[int]]:
    """Split documents into groups, so that padding each to its longest wastes little."""
    order = sorted(chosen, key=lengths.__getitem__, reverse=True)
    groups: list[list[int]] = []
    padded = 0
    for number in order:
        if groups:
            longest = lengths[groups[-1][0]]
            padded += longest - lengths[number]
            size = longest * (len(groups[-1]) + 1)
            if padded <= max(MIN_PADDED_TOKENS, MAX_PADDED_SHARE * size):
                groups[-1].append(number)
                continue
        groups.append([number])
        padded = 0
    # In the order of the batch, so that an unsplit batch is scored as it came.
    return [sorted(group) for group in groups]
