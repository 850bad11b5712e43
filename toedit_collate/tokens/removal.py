"""Removing tokens from a batch: rows shrink, and what belongs to each token goes along."""

from __future__ import annotations

import torch
from torch import Tensor

from .documents import Documents

# Columns of rows and batches, beside ids, labels, mask and positions, with a value for each token.
TOKEN_COLUMNS = ("token_type_ids", "completion_mask", "assistant_masks", "loss_mask")


def shrink_rows(
    documents: Documents, dropped: Tensor, columns: dict[str, tuple[Tensor, int]], T: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Take tokens out of a batch, and pad the rows again on the side where they were padded.

    Args:
        documents: of the batch; M tokens.
        dropped: (M,) bool, the tokens to remove.
        columns: name -> ((B, T) tensor, value for padding), what there is for each token.
        T: length of the rows.

    Returns:
        The columns, (B, T') with T' the longest row that is left; and (B, T') bool, False at
        padding.
    """
    index = documents.index[~dropped]
    some = next(iter(columns.values()))[0]
    B = some.shape[0]
    row = index // T
    counts = torch.bincount(row, minlength=B)
    width = int(counts.max())
    first_of_row = counts.cumsum(0) - counts
    column = torch.arange(len(index), device=index.device) - first_of_row[row]
    if _padded_left(documents.index, B, T):
        column = column + (width - counts)[row]
    shrunk = {}
    for name, (tensor, padding) in columns.items():
        new = tensor.new_full((B, width), padding)
        new[row, column] = tensor.reshape(-1)[index]
        shrunk[name] = new
    real = torch.zeros(B, width, dtype=torch.bool, device=index.device)
    real[row, column] = True
    return shrunk, real


def positions_left(documents: Documents, dropped: Tensor) -> Tensor:
    """The position of each token in its document once others are removed: (M,) int64."""
    kept = (~dropped).cumsum(0)
    # The first token of a document is never removed.
    return kept - kept[documents.start][documents.document]


def _padded_left(index: Tensor, B: int, T: int) -> bool:
    real = torch.zeros(B * T, dtype=torch.bool, device=index.device)
    real[index] = True
    real = real.view(B, T)
    return bool((~real[:, 0] & real[:, -1]).any())
