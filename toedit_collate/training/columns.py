"""Everything in a batch that speaks of rows and lengths follows tokens that were removed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..tokens.removal import TOKEN_COLUMNS
from ..tokens.result import EditResult

# Keys with a value for each token.
_FOLLOWING = {
    "input_ids", "labels", "attention_mask", "position_ids", "seq_idx", "packed_seq_lengths",
    "length", *(f"{name}_{side}" for name in ("cu_seq_lens", "max_length") for side in "qk"),
}  # fmt: skip
# Names of numbers that would be wrong once tokens are gone.
_SPEAKS_OF_LENGTHS = re.compile(r"len|seq_?idx|segment|offset|num_(items|tokens)", re.IGNORECASE)
_MEND = "remove the key in the base collator, or set drop_below=None"


def with_edit(batch: dict[str, Any], result: EditResult) -> dict[str, Any]:
    """A collated batch with the edit put in; other keys as they came.

    Args:
        batch: as collated.
        result: of the edit; where it removed tokens, all that speaks of rows follows.

    Raises:
        ValueError: tokens were removed, and a key that isn't known seems to speak of them.
    """
    edited = {**batch, "input_ids": result.input_ids}
    if "labels" in batch:
        edited["labels"] = result.labels
    if result.source is None:
        return edited
    mask, source = batch.get("attention_mask"), result.source
    if mask is not None:
        edited["attention_mask"] = _kept(mask, source)  # documents keep their numbers
    elif result.attention_mask is not None:
        edited["attention_mask"] = result.attention_mask
    return _with_new_lengths(batch, edited, result, source)


def check_can_shrink(batch: Mapping[str, Any]) -> None:
    """Raise where rows can't lose tokens."""
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 4:
        raise ValueError(
            "drop_below removes tokens, which an attention_mask of four dimensions can't follow; "
            "mark documents by position_ids that restart at 0, or set drop_below=None"
        )


def _with_new_lengths(
    batch: dict[str, Any], edited: dict[str, Any], result: EditResult, source: Tensor
) -> dict[str, Any]:
    B, T = batch["input_ids"].shape
    positions = result.position_ids
    for key, value in batch.items():
        if key in _FOLLOWING:
            continue
        is_tensor = isinstance(value, Tensor)
        if is_tensor and key in TOKEN_COLUMNS:
            edited[key] = _kept(value, source)
        elif is_tensor and T > 1 and value.shape[:2] == (B, T):
            raise ValueError(
                f"drop_below removed tokens, but the batch has {key!r} of shape "
                f"{tuple(value.shape)}, which seems to hold something for each of them; {_MEND}"
            )
        elif _SPEAKS_OF_LENGTHS.search(key) and _is_whole(value):
            raise ValueError(
                f"drop_below removed tokens, but the batch has {key!r}, which seems to speak of "
                f"lengths and is not known; {_MEND}"
            )
    if positions is not None and "position_ids" in batch:
        old = batch["position_ids"].expand(B, T)
        edited["position_ids"] = _numbered_as_before(positions, old, source)
    if positions is not None and "cu_seq_lens_q" in batch:
        first = (positions.reshape(-1) == 0).nonzero().squeeze(-1)
        borders = torch.cat([first, first.new_tensor([positions.numel()])])
        for side in ("q", "k"):
            edited[f"cu_seq_lens_{side}"] = borders.to(batch["cu_seq_lens_q"].dtype)
            edited[f"max_length_{side}"] = _like(
                batch.get(f"max_length_{side}"), borders.diff().max()
            )
    if positions is not None and "seq_idx" in batch:
        numbers = (positions == 0).cumsum(-1) - 1
        edited["seq_idx"] = numbers.to(batch["seq_idx"].dtype)
    mask = batch.get("attention_mask")
    real = torch.ones_like(result.dropped) if mask is None else mask.to(result.dropped.device) != 0
    if "packed_seq_lengths" in batch:  # of documents, one after the other in all rows (Unsloth)
        lost = result.dropped[real]
        edited["packed_seq_lengths"] = _shortened(batch, "packed_seq_lengths", lost, None)
    if "length" in batch:  # of rows (group_by_length)
        lost = result.dropped[real]
        edited["length"] = _shortened(batch, "length", lost, real.sum(-1))
    return edited


def _shortened(batch: dict[str, Any], key: str, lost: Tensor, expected: Tensor | None) -> Any:
    """Lengths of spans of tokens, one after the other, without the tokens that were removed.

    Args:
        batch: with the lengths, as a tensor or a list.
        key: of them.
        lost: (M,) bool, which of the real tokens were removed.
        expected: what the lengths must be; None: of spans that together have at most M tokens.
    """
    old = torch.as_tensor(batch[key]).to(lost.device).long()
    known = old.dim() == 1 and int(old.sum()) <= lost.numel()
    if not known or (expected is not None and not torch.equal(old, expected)):
        raise ValueError(
            f"drop_below removed tokens, but {key!r} of the batch is not what it is understood to "
            f"be, numbers of tokens in the rows, so it can't follow; {_MEND}"
        )
    gone = torch.cat([lost.new_zeros(1, dtype=torch.long), lost.long().cumsum(0)])
    ends = old.cumsum(0)
    return _like(batch[key], old - (gone[ends] - gone[ends - old]))


def _like(old: Any, new: Tensor) -> Any:
    """Numbers in the form that they had: a tensor, a list or a number."""
    if isinstance(old, Tensor):
        return new.to(old.device, old.dtype).expand(old.shape)
    return new.tolist()


def _is_whole(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.dtype == torch.bool)
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(map(_is_whole, value))
    return isinstance(value, int) and not isinstance(value, bool)


def _kept(value: Tensor, source: Tensor) -> Tensor:
    """(B, T) -> (B, T'): the values of the tokens left, where those now stand; 0 at padding."""
    return value.gather(1, source.clamp(min=0)).masked_fill(source < 0, 0)


def _numbered_as_before(positions: Tensor, old: Tensor, source: Tensor) -> Tensor:
    """Let documents begin at the number where they began: some models count from 2, say."""
    place = torch.arange(positions.shape[1], device=positions.device).expand(positions.shape)
    first = torch.where(positions == 0, place, 0).cummax(-1).values
    offset = _kept(old, source).gather(1, first)
    return (positions + offset).masked_fill(source < 0, 0).to(old.dtype)
