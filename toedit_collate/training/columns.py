"""How collators tell the documents of a packed row, besides by `position_ids`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..tokens.result import EditResult


def packed_positions(batch: Mapping[str, Any]) -> Tensor | None:
    """Position ids from cumulative lengths or sequence numbers; None: rows are documents.

    Args:
        batch: with `cu_seq_lens_q` (N + 1,), the borders of the documents in the flattened row, or
            `seq_idx` (B, T), the number of each token's document.

    Returns:
        (B, T) int64, restarting at 0 at each document; or None.
    """
    ids = batch["input_ids"]
    borders = batch.get("cu_seq_lens_q")
    if isinstance(borders, Tensor):
        lengths = borders.diff().long()
        starts = borders[:-1].long().repeat_interleave(lengths)
        return (torch.arange(ids.numel(), device=ids.device) - starts).view(ids.shape)
    numbers = batch.get("seq_idx")
    if isinstance(numbers, Tensor):
        first = torch.ones_like(numbers, dtype=torch.bool)
        first[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        place = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        return place - torch.where(first, place, 0).cummax(-1).values
    return None


def document_positions(batch: Mapping[str, Any]) -> Tensor | None:
    """What tells the documents of a collated batch: (B, T) position ids; None: its rows."""
    positions = batch.get("position_ids")
    if positions is None:
        return packed_positions(batch)
    if isinstance(positions, Tensor) and positions.shape[0] == 1:
        return positions.expand(batch["input_ids"].shape)
    return positions


def with_new_lengths(
    batch: dict[str, Any],
    edited: dict[str, Any],
    result: EditResult,
) -> dict[str, Any]:
    """Let everything that speaks of rows follow tokens that were removed.

    Args:
        batch: as collated.
        edited: the batch with the new tokens, labels and mask.
        result: of the edit, which removed tokens.

    Raises:
        ValueError: a key that isn't known seems to hold a value for each token.
    """
    B, T = batch["input_ids"].shape
    positions, source = result.position_ids, result.source
    assert source is not None
    if positions is not None and "position_ids" in batch:
        old = batch["position_ids"].expand(B, T)
        edited["position_ids"] = _numbered_as_before(positions, old, source)
    for key, value in batch.items():
        if not isinstance(value, Tensor) or key in _FOLLOWING:
            continue
        if key in _PER_TOKEN:
            edited[key] = _kept(value, source)
        elif T > 1 and value.shape[:2] == (B, T):
            raise ValueError(
                f"drop_below removed tokens, but the batch has {key!r} of shape "
                f"{tuple(value.shape)}, which seems to hold something for each of them; remove "
                "the key in the base collator, or set drop_below=None"
            )
    if positions is not None and "cu_seq_lens_q" in batch:
        first = (positions.reshape(-1) == 0).nonzero().squeeze(-1)
        borders = torch.cat([first, first.new_tensor([positions.numel()])])
        for side in ("q", "k"):
            edited[f"cu_seq_lens_{side}"] = borders.to(batch["cu_seq_lens_q"].dtype)
            longest = int(borders.diff().max())
            old = batch.get(f"max_length_{side}")
            edited[f"max_length_{side}"] = (
                torch.full_like(old, longest) if isinstance(old, Tensor) else longest
            )
    if positions is not None and "seq_idx" in batch:
        numbers = (positions == 0).cumsum(-1) - 1
        edited["seq_idx"] = numbers.to(batch["seq_idx"].dtype)
    return edited


# Keys whose value says something of each token.
_PER_TOKEN = {"token_type_ids", "completion_mask", "assistant_masks", "loss_mask"}
_FOLLOWING = {
    "input_ids", "labels", "attention_mask", "position_ids", "seq_idx",
    "cu_seq_lens_q", "cu_seq_lens_k",
}  # fmt: skip


def _kept(value: Tensor, source: Tensor) -> Tensor:
    """(B, T) -> (B, T'): the values of the tokens left, where those now stand; 0 at padding."""
    return value.gather(1, source.clamp(min=0)).masked_fill(source < 0, 0)


def _numbered_as_before(positions: Tensor, old: Tensor, source: Tensor) -> Tensor:
    """Let documents begin at the number where they began: some models count from 2, say."""
    place = torch.arange(positions.shape[1], device=positions.device).expand(positions.shape)
    first = torch.where(positions == 0, place, 0).cummax(-1).values
    offset = _kept(old, source).gather(1, first)
    return (positions + offset).masked_fill(source < 0, 0).to(old.dtype)
