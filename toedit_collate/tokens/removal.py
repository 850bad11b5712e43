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

# Other keys that are updated here.
_FOLLOWING = {
    "input_ids", "labels", "attention_mask", "position_ids", "seq_idx", "packed_seq_lengths",
    "length", *(f"{name}_{side}" for name in ("cu_seq_lens", "max_length") for side in "qk"),
}  # fmt: skip
# Names of numbers that would be wrong after tokens are removed.
_NAMES_LENGTHS = re.compile(r"len|seq_?idx|segment|offset|num_(items|tokens)", re.IGNORECASE)
_FIX = "remove the key in the base collator, or set drop_below=None and drop_above=None"


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
    assert result.source is not None
    source, positions = result.source, result.position_ids
    new: dict[str, Any] = {}
    for key, value in batch.items():
        if key in _FOLLOWING:
            continue
        if key in TOKEN_COLUMNS and isinstance(value, Tensor):
            new[key] = take_columns(value.to(source.device), source)
        else:
            _refuse_stale(key, value, batch["input_ids"].shape)
    mask = batch.get("attention_mask")
    if mask is not None:
        mask = mask.to(source.device)
        new["attention_mask"] = take_columns(mask, source)  # documents keep their numbers
    elif result.attention_mask is not None:
        new["attention_mask"] = result.attention_mask
    if positions is not None:
        new |= _new_positions(batch, positions, source)
    # Lengths of documents, in order (Unsloth), and of rows (group_by_length).
    lengths = [key for key in ("packed_seq_lengths", "length") if key in batch]
    if lengths:
        real = torch.ones_like(result.dropped) if mask is None else mask != 0
        for key in lengths:
            expected = real.sum(-1) if key == "length" else None
            new[key] = _shortened(key, batch[key], result.dropped[real], expected)
    return new


def _refuse_stale(key: str, value: Any, shape: torch.Size) -> None:
    if isinstance(value, Tensor) and shape[1] > 1 and value.shape[:2] == shape:
        raise ValueError(
            f"drop_below or drop_above removed tokens, but the batch has {key!r} of shape "
            f"{tuple(value.shape)}, which seems to hold a value for each token; {_FIX}"
        )
    if _NAMES_LENGTHS.search(key) and _is_whole(value):
        raise ValueError(
            f"drop_below or drop_above shortens rows, but the batch has {key!r}, which looks like "
            f"lengths and is not a key that we know how to update; {_FIX}"
        )


def _is_whole(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.dtype == torch.bool)
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(map(_is_whole, value))
    return isinstance(value, int) and not isinstance(value, bool)


def _new_positions(batch: Mapping[str, Any], positions: Tensor, source: Tensor) -> dict[str, Any]:
    """The keys that mark documents, for (B, T') positions that restart at each."""
    new: dict[str, Any] = {}
    first = positions == 0
    if "position_ids" in batch:
        # A document keeps its first number: some models count from 2, for example.
        old = batch["position_ids"].expand(batch["input_ids"].shape).to(source.device)
        place = torch.arange(positions.shape[1], device=source.device).expand(positions.shape)
        begin = torch.where(first, place, 0).cummax(-1).values
        numbered = positions + take_columns(old, source).gather(1, begin)
        new["position_ids"] = numbered.masked_fill(source < 0, 0).to(old.dtype)
    if "cu_seq_lens_q" in batch:
        begins = first.reshape(-1).nonzero().squeeze(-1)
        borders = torch.cat([begins, begins.new_tensor([first.numel()])])
        for side in "qk":
            new[f"cu_seq_lens_{side}"] = borders.to(batch["cu_seq_lens_q"].dtype)
            longest = f"max_length_{side}"
            new[longest] = _in_the_form_of(batch.get(longest), borders.diff().max())
    if "seq_idx" in batch:
        new["seq_idx"] = (first.cumsum(-1) - 1).to(batch["seq_idx"].dtype)
    return new


def _shortened(key: str, old: Any, lost: Tensor, expected: Tensor | None) -> Any:
    """Lengths of consecutive spans of tokens, without the removed ones.

    `lost` is (M,) bool, which of the real tokens were removed. `expected` are the lengths that
    `old` must have; None: they sum to at most M.
    """
    lengths = torch.as_tensor(old).to(lost.device).long()
    known = lengths.dim() == 1 and int(lengths.sum()) <= lost.numel()
    if not known or (expected is not None and not torch.equal(lengths, expected)):
        raise ValueError(
            f"drop_below or drop_above removed tokens, but {key!r} of the batch does not hold the "
            f"lengths of its rows or documents, so it can't be updated; {_FIX}"
        )
    gone = torch.cat([lost.new_zeros(1, dtype=torch.long), lost.long().cumsum(0)])
    ends = lengths.cumsum(0)
    return _in_the_form_of(old, lengths - (gone[ends] - gone[ends - lengths]))


def _in_the_form_of(old: Any, new: Tensor) -> Any:
    """A new value as a tensor, list or number, like the old one."""
    if isinstance(old, Tensor):
        return new.to(old.device, old.dtype).expand(old.shape)
    return new.tolist()
