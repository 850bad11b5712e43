"""Shortens the rows of a batch: the one place where a batch changes its shape (`drop_below`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .documents import Documents
from .result import EditResult

# Columns with a value for each token, other than ids, labels, mask and positions.
TOKEN_COLUMNS = ("token_type_ids", "completion_mask", "assistant_masks", "loss_mask")

_FOLLOWING = (
    "input_ids", "labels", "attention_mask", "position_ids", "seq_idx",
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
)  # fmt: skip
# Names of numbers that would be wrong after tokens are removed.
_NAMES_LENGTHS = re.compile(r"len|seq_?idx|segment|offset|num_(items|tokens)", re.IGNORECASE)


def remaining_columns(
    documents: Documents, dropped: Tensor, shape: torch.Size, multiple: int | None = None
) -> Tensor:
    """The old column of each token of the shortened rows: (B, T') int64, -1 at padding.

    `dropped` is (M,) bool, the tokens to remove, and `shape` (B, T). T' is a multiple of
    `multiple`, or the length of the longest row. Padding stays on its side.
    """
    B, T = shape
    kept = documents.index[~dropped]
    row = kept // T
    counts = torch.bincount(row, minlength=B)
    width = int(counts.max())
    if multiple is not None:
        width += -width % multiple
    column = torch.arange(len(kept)) - (counts.cumsum(0) - counts)[row]
    real = torch.zeros(B * T, dtype=torch.bool)
    real[documents.index] = True
    real = real.view(B, T)
    if bool((~real[:, 0] & real[:, -1]).any()):  # padded on the left
        column += (width - counts)[row]
    source = torch.full((B, width), -1)
    source[row, column] = kept % T
    return source


def remaining_positions(documents: Documents, dropped: Tensor, shape: torch.Size) -> Tensor:
    """(B, T) int64: the position of each token in its document after others are removed."""
    kept = (~dropped).cumsum(0)
    positions = torch.zeros(shape, dtype=torch.int64)
    # The first token of a document is never removed.
    positions.view(-1)[documents.index] = kept - kept[documents.start][documents.document]
    return positions


def take_columns(values: Tensor, source: Tensor, padding: int = 0) -> Tensor:
    """(B, T) -> (B, T'): the values of the remaining tokens, by `remaining_columns`."""
    return values.gather(1, source.clamp(min=0)).masked_fill(source < 0, padding)


def shrink_other_keys(batch: Mapping[str, Any], result: EditResult) -> dict[str, Any]:
    """Adapt the other keys of a collated batch to the removal of tokens.

    Returns:
        The keys that change, other than `input_ids` and `labels`.

    Raises:
        ValueError: an unknown key seems to hold lengths, or values of tokens.
    """
    source = result.source
    assert source is not None
    new: dict[str, Any] = {}
    for key, value in batch.items():
        if key in TOKEN_COLUMNS and isinstance(value, Tensor):
            new[key] = take_columns(value.to(source.device), source)
        elif key not in _FOLLOWING and _is_stale(key, value, batch["input_ids"].shape):
            raise ValueError(
                f"drop_below or drop_above removed tokens, but the batch has {key!r}, which looks "
                "like lengths, or values of tokens, of the rows before; remove the key in the base "
                "collator, or set drop_below=None and drop_above=None"
            )
    if result.attention_mask is not None:
        new["attention_mask"] = result.attention_mask
    positions = result.position_ids
    if positions is None:
        return new
    if "position_ids" in batch:
        new["position_ids"] = positions.to(batch["position_ids"].dtype)
    is_first = positions == 0
    if "cu_seq_lens_q" in batch:
        begins = is_first.reshape(-1).nonzero().squeeze(-1)
        borders = torch.cat([begins, begins.new_tensor([is_first.numel()])])
        for side in "qk":
            new[f"cu_seq_lens_{side}"] = borders.to(batch["cu_seq_lens_q"].dtype)
            new[f"max_length_{side}"] = int(borders.diff().max())
    if "seq_idx" in batch:
        new["seq_idx"] = (is_first.cumsum(-1) - 1).to(batch["seq_idx"].dtype)
    return new


def _is_stale(key: str, value: Any, shape: torch.Size) -> bool:
    """Whether a value seems to describe rows of the (B, T) `shape`."""
    if isinstance(value, Tensor) and shape[1] > 1 and value.shape[:2] == shape:
        return True
    numbers = value if isinstance(value, list) else [value]
    are_whole = all(isinstance(n, (int, list, Tensor)) and not isinstance(n, bool) for n in numbers)
    return are_whole and _NAMES_LENGTHS.search(key) is not None
