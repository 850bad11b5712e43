"""The documents of a batch: padded on either side, packed, or flattened without padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


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
    if attention_mask is None:
        index = np.arange(B * T)
    else:
        index = attention_mask.numpy().reshape(-1).nonzero()[0]
    row = index // T
    first = np.ones(len(index), dtype=bool)
    np.not_equal(row[1:], row[:-1], out=first[1:])
    if position_ids is not None:
        given = position_ids.numpy().reshape(-1)[index]
        first[1:] |= given[1:] != given[:-1] + 1
    document = first.cumsum() - 1
    start = first.nonzero()[0]
    position = np.arange(len(index)) - start[document]
    lengths = np.diff(start, append=len(index)).tolist()
    return Documents(
        index=torch.from_numpy(index),
        document=torch.from_numpy(document),
        position=torch.from_numpy(position),
        start=torch.from_numpy(start),
        lengths=lengths,
    )
