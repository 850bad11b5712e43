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

    A document ends with its row, where `position_ids` do not go up by one (the rule that
    transformers uses for packed rows), and where the numbers in `attention_mask` change. Padding
    belongs to no document.

    Args:
        input_ids: (B, T) int64.
        attention_mask: (B, T), 0 at padding, and elsewhere 1 or the number of the document; None:
            there is no padding.
        position_ids: (B, T) int64, restarting at each document; None: a document is a row.

    Raises:
        ValueError: padding stands inside a document.

    Example:
        >>> ids = torch.tensor([[7, 8, 9, 5, 6]])
        >>> find_documents(ids, None, torch.tensor([[0, 1, 2, 0, 1]])).lengths
        [3, 2]
        >>> find_documents(ids, torch.tensor([[1, 1, 2, 2, 0]]), None).lengths
        [2, 2]
    """
    B, T = input_ids.shape
    if attention_mask is None:
        index = np.arange(B * T)
    else:
        index = attention_mask.numpy().reshape(-1).nonzero()[0]
    row = index // T
    first = np.ones(len(index), dtype=bool)
    np.not_equal(row[1:], row[:-1], out=first[1:])
    apart = np.diff(index) > 1
    if attention_mask is not None:
        number = attention_mask.numpy().reshape(-1)[index]
        first[1:] |= number[1:] != number[:-1]
    inside = ~first[1:]
    if position_ids is not None:
        given = position_ids.numpy().reshape(-1)[index]
        continues = given[1:] == given[:-1] + 1
        first[1:] |= ~continues
        # Behind padding a document may begin; or the last one goes on as if there were none.
        inside &= given[1:] > given[:-1] + 1
    if (apart & inside).any():
        _refuse_hole(int(index[1:][apart & inside][0]), T)
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


def _refuse_hole(cell: int, T: int) -> None:
    row, column = divmod(cell, T)
    raise ValueError(
        f"attention_mask has a hole: row {row}, column {column - 1} is 0 between tokens of one "
        "document, which then can't be scored as it is trained on; remove such tokens from the "
        "rows, or mark where the next document begins, by position_ids that restart at 0 or by "
        "numbers in attention_mask (1, 1, 0, 2, 2)"
    )


def mask_of_pairs(attention_mask: Tensor, B: int) -> Tensor:
    """The documents that a mask of pairs of tokens keeps apart, as numbers.

    Args:
        attention_mask: (B, 1, T, T) or (1, 1, T, T), which tokens (columns) each token (row) may
            see: bool, 0 and 1, or numbers that are added to scores, 0 where it may and the lowest
            number where not.
        B: number of rows.

    Returns:
        (B, T) int64 on its device: 0 for a token that does not see itself, which is padding, and
        else the number of the document, from 1 in each row.

    Raises:
        ValueError: a token sees less or more than its document up to itself.

    Example:
        >>> pairs = torch.ones(3, 3, dtype=torch.bool).tril()
        >>> pairs[2, :2] = False
        >>> mask_of_pairs(pairs[None, None], 1)
        tensor([[1, 1, 2]])
    """
    T = attention_mask.shape[-1]
    column = torch.arange(T, device=attention_mask.device)
    numbers, fits = [], []
    for row in attention_mask[:, 0]:  # one at a time: each is T * T
        seen = row >= 0 if row.is_floating_point() else row != 0
        real = seen.diagonal()
        start = seen.to(torch.uint8).argmax(-1)
        block = (column >= start.unsqueeze(-1)) & (column <= column.unsqueeze(-1))
        before = torch.cat([start.new_tensor([-1]), start[:-1]])
        goes_on = (start == column) | (start == before)
        fits.append((((seen == block).all(-1) & goes_on) | ~real).all())
        numbers.append(((start == column) & real).cumsum(0) * real)
    if not bool(torch.stack(fits).all()):
        raise ValueError(
            "attention_mask of four dimensions must let each token look at all of its document up "
            "to itself and at nothing else, which is not so here (a sliding window, or a prefix "
            "that looks ahead?); mark documents by position_ids that restart at 0"
        )
    return torch.stack(numbers).expand(B, T)
