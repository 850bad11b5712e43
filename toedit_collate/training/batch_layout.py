"""What a collated batch says of its documents, by whichever keys its collator says it.

Documents of a packed row are told by `position_ids` that restart, by cumulative lengths
(`cu_seq_lens_q`), by lengths (`packed_seq_lengths`), by numbers (`seq_idx`, or an attention mask of
1, 1, 2, 2, 2, 0), or by an attention mask of four dimensions. All of them are brought to one form
here, exactly, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..tokens.checks import check_pairs
from ..tokens.documents import mask_of_pairs

# (B, T) masks that say which tokens are learned from, where there are no labels.
_LABEL_MASKS = ("completion_mask", "assistant_masks")
# Keys that tell documents: their borders in flattened rows, and the number of each token's.
_BORDERS = ("cu_seq_lens_q", "cu_seq_lens", "cu_seqlens_q", "cu_seqlens")
_NUMBERS = ("seq_idx", "document_ids", "doc_ids", "sequence_ids", "segment_ids")


@dataclass(frozen=True)
class BatchLayout:
    """What `edit_tokens` asks of a batch beside its tokens.

    Attributes:
        attention_mask: (B, T), 0 at padding and 1 at tokens; None: there is no padding.
        position_ids: (B, T) int64, not rising by one where a document begins; None: a row is one.
        labels: (B, T) int64, -100 where nothing is learned; None: all is.
    """

    attention_mask: Tensor | None
    position_ids: Tensor | None
    labels: Tensor | None


def read_layout(batch: Mapping[str, Any]) -> BatchLayout:
    """The layout of a collated batch.

    Args:
        batch: with `input_ids` (B, T).

    Raises:
        ValueError: a mask tells documents in a way that can't be understood exactly.

    Example:
        >>> ids = torch.tensor([[7, 8, 9, 5, 6, 0]])
        >>> numbered = torch.tensor([[1, 1, 1, 2, 2, 0]])
        >>> layout = read_layout({"input_ids": ids, "attention_mask": numbered})
        >>> layout.attention_mask.tolist(), layout.position_ids.tolist()
        ([[1, 1, 1, 1, 1, 0]], [[0, 1, 2, 0, 1, 0]])
    """
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2:  # `edit_tokens` refuses it
        return BatchLayout(mask, batch.get("position_ids"), batch.get("labels"))
    positions = document_positions(batch)
    if isinstance(mask, Tensor):
        numbered = mask.dim() == 4
        if numbered:
            check_pairs(mask, ids)
            mask = mask_of_pairs(mask, len(ids))
        if numbered or (mask.shape == ids.shape and bool((mask > 1).any())):
            mask, first = _of_numbers(mask)
            positions = _restarting(first, positions)
    return BatchLayout(mask, positions, _labels(batch))


def document_positions(batch: Mapping[str, Any]) -> Tensor | None:
    """Position ids that tell the documents, by keys beside the mask; None: rows are documents.

    Where several keys tell of documents, each of them is believed: a document begins where one of
    them says so.

    Args:
        batch: with `position_ids` (B, T) or (1, T); `cu_seq_lens_q` (N + 1,), the borders of the
            documents in the flattened rows; `seq_idx` (B, T), the number of each token's document;
            or `packed_seq_lengths` (N,), the lengths of the documents, row by row (Unsloth). Or
            with their other names in the field.

    Returns:
        (B, T) int64; or None.

    Raises:
        ValueError: borders or lengths are not those of the batch.

    Example:
        >>> batch = {"input_ids": torch.tensor([[7, 8, 9, 5, 6]])}
        >>> document_positions({**batch, "cu_seqlens": torch.tensor([0, 3, 5])}).tolist()
        [[0, 1, 2, 0, 1]]
    """
    ids, positions = batch["input_ids"], batch.get("position_ids")
    if isinstance(positions, Tensor) and positions.shape[0] == 1:
        positions = positions.expand(ids.shape)
    first = [_first_of_borders(batch, name) for name in _BORDERS if _is_tensor(batch, name)]
    first += [_first_of_run(batch[name]) for name in _NUMBERS if _tells(batch, name)]
    if batch.get("packed_seq_lengths") is not None:
        first.append(_first_of_lengths(batch, "packed_seq_lengths"))
    if not first:
        return positions
    if positions is not None and positions.shape != ids.shape:
        return positions  # `edit_tokens` refuses it
    return _restarting(torch.stack([one.to(ids.device) for one in first]).any(0), positions)


def _is_tensor(batch: Mapping[str, Any], name: str) -> bool:
    return isinstance(batch.get(name), Tensor)


def _tells(batch: Mapping[str, Any], name: str) -> bool:
    return _is_tensor(batch, name) and batch[name].shape == batch["input_ids"].shape


def _first_of_borders(batch: Mapping[str, Any], name: str) -> Tensor:
    """(B, T) bool, True where a document begins, by the borders of documents in flattened rows."""
    ids, borders = batch["input_ids"], batch[name].reshape(-1).long().cpu()
    lengths = borders.diff()
    if not len(borders) or borders[0] != 0 or (lengths < 0).any() or borders[-1] != ids.numel():
        raise ValueError(
            f"{name} must rise from 0 to {ids.numel()}, the tokens of the batch, got "
            f"{borders.tolist()}; give position_ids that restart at 0"
        )
    first = torch.zeros(ids.numel(), dtype=torch.bool)
    first[borders[:-1][lengths > 0]] = True
    return first.view(ids.shape)


def _first_of_lengths(batch: Mapping[str, Any], name: str) -> Tensor:
    """(B, T) bool, True where a document begins, by the lengths of the documents in all rows."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    lengths = torch.as_tensor(batch[name]).reshape(-1).long().cpu()
    real = torch.ones(ids.shape, dtype=torch.bool)
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        real = mask.cpu() != 0
    places = real.reshape(-1).nonzero().squeeze(-1)
    end = lengths.cumsum(0)
    if (lengths < 0).any() or (len(end) and int(end[-1]) > len(places)):
        raise ValueError(
            f"{name} must sum to no more than the {len(places)} tokens of the batch, got "
            f"{lengths.tolist()}; give position_ids that restart at 0"
        )
    first = torch.zeros(ids.numel(), dtype=torch.bool)
    begin = torch.cat([end - lengths, end[-1:]])  # behind the last: padding that no mask tells
    first[places[begin[begin < len(places)]]] = True
    return first.view(ids.shape)


def _labels(batch: Mapping[str, Any]) -> Tensor | None:
    """The labels, or what the masks of a batch without labels say of them."""
    ids, labels = batch["input_ids"], batch.get("labels")
    masks = [batch[name] for name in _LABEL_MASKS if isinstance(batch.get(name), Tensor)]
    if labels is not None or not masks:
        return labels
    learned = torch.stack([mask.to(ids.device) != 0 for mask in masks]).all(0)
    if learned.shape != ids.shape:
        raise ValueError(
            f"completion_mask must have the shape of input_ids, {tuple(ids.shape)}, got "
            f"{tuple(learned.shape)}; let the base collator return labels"
        )
    return torch.where(learned, ids, -100)


def _of_numbers(mask: Tensor) -> tuple[Tensor, Tensor]:
    """A mask that numbers documents from 1: a mask of 0 and 1, and where documents begin."""
    # Stricter than `tokens.documents`, where a document begins wherever the number changes, as its
    # caller says: a collator's numbers that fall again (1, 2, 1) mean something that we don't know.
    real = mask != 0
    number_so_far = torch.where(real, mask, 0).cummax(-1).values
    if bool((mask < 0).any()) or bool((real & (mask < number_so_far)).any()):
        raise ValueError(
            "attention_mask numbers documents, but not by numbers that rise along a row (1, 1, 2, "
            "2, 2, 0); number them so, or mark them by position_ids that restart at 0"
        )
    return real.to(mask.dtype), _first_of_run(mask)


def _first_of_run(numbers: Tensor) -> Tensor:
    """(B, T) -> (B, T) bool, True where another number begins."""
    first = torch.ones_like(numbers, dtype=torch.bool)
    first[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    return first


def _restarting(first: Tensor, positions: Tensor | None) -> Tensor:
    """Position ids (B, T) that restart where documents begin, and where `positions` do."""
    if positions is not None:
        first = first.clone()
        first[:, 1:] |= positions[:, 1:] != positions[:, :-1] + 1
    place = torch.arange(first.shape[1], device=first.device).expand(first.shape)
    return place - torch.where(first, place, 0).cummax(-1).values
