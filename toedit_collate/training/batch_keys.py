"""Keys of batches: those that an edit would make wrong, and `edit`, for tokens to leave alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UnusableError

_REFUSED = {
    "shift_labels": "which would keep the tokens from before the edit",
    "inputs_embeds": "so the model reads no token ids, and only token ids can be edited",
}
# What a teacher, a reference model or a reward computed from the unedited tokens.
_DEPENDS_ON_TOKENS = re.compile(
    r"log_?p(s|rob|$)|logits|advantage|reward|teacher|target_token|target_mask|"
    r"(start|end)_positions",
    re.IGNORECASE,
)
_KNOWN_MASKS = ("attention_mask", "special_tokens_mask")

Flag = bool | Sequence[bool]  # `edit`, of a row or of each of its tokens


def check_keys(batch: Mapping[str, Any]) -> None:
    """Raise a ValueError that names a key which an edit of `input_ids` and `labels` makes wrong.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[5, 6, 7, 2]])
        >>> check_keys({"input_ids": ids, "targets": ids.roll(-1)})
        Traceback (most recent call last):
        ...
        ValueError: the batch has 'targets', a copy of input_ids, which would keep the tokens ...
    """
    for key, why in _REFUSED.items():
        if batch.get(key) is not None:
            raise ValueError(
                f"the batch has {key}, {why}; remove it from the base collator's output"
            )
    knows_loss = batch.get("labels") is not None
    for key, value in batch.items():
        if value is None or key in ("input_ids", "labels"):
            continue
        if _DEPENDS_ON_TOKENS.search(key):
            raise ValueError(
                f"the batch has {key!r}, which belongs to the tokens from before the edit (a span, "
                "or the output of a teacher, a reference model or a reward); token editing is for "
                "supervised fine-tuning and pretraining on the next token"
            )
        if re.search(r"masks?$", key) and key not in _KNOWN_MASKS and not knows_loss:
            raise ValueError(
                f"the batch has {key} and no labels, so it is not known what is learned from; let "
                "the base collator return labels, -100 where there is no loss"
            )
        if _is_copy(value, batch["input_ids"]):
            raise ValueError(
                f"the batch has {key!r}, a copy of input_ids, which would keep the tokens from "
                "before the edit; let the base collator return it as labels, or remove it"
            )


def _is_copy(value: Any, ids: Any) -> bool:
    """Whether a tensor holds the token ids, or the next ones, wherever it is not -100."""
    if not (isinstance(value, Tensor) and isinstance(ids, Tensor)):
        return False
    if value.shape != ids.shape or ids.dim() != 2 or value.dtype != ids.dtype:
        return False
    value = value.to(ids.device)
    for ours, theirs in ((value, ids), (value[:, :-1], ids[:, 1:])):
        known = ours != -100
        # Two tokens or fewer may agree by chance.
        if int(known.sum()) > 2 and torch.equal(ours[known], theirs[known]):
            return True
    return False


def take_edit_column(features: Any) -> tuple[Any, list[Flag] | None]:
    """Remove the column `edit` from rows, since base collators do not expect it.

    Returns the rows without it, and a flag for each row (True where it is missing or None); None
    instead of the flags if no row has one.

    Example:
        >>> take_edit_column([{"input_ids": [5, 6], "edit": False}, {"input_ids": [7]}])
        ([{'input_ids': [5, 6]}, {'input_ids': [7]}], [False, True])
    """
    if not isinstance(features, Sequence):
        return features, None
    if not any(isinstance(row, Mapping) and "edit" in row for row in features):
        return features, None
    flags = [True if (flag := row.get("edit")) is None else flag for row in features]
    return [{k: v for k, v in row.items() if k != "edit"} for row in features], flags


def check_column_kept(given: Any, kept: Any) -> None:
    """Raise an UnusableError if a dataset lost its column `edit`, as TRL's packing does."""
    had, has = (getattr(rows, "column_names", None) or () for rows in (given, kept))
    if "edit" in had and "edit" not in has:
        raise UnusableError(
            "TRL's packing drops the data's column 'edit', so that rows with edit=False would be "
            "edited; set packing: false, or use recipes/cpt.py or recipes/pretrain.py with "
            "datasets: [{name: A}, {name: B, edit: false}]"
        )


def edit_key(batch: Mapping[str, Any], rows: Sequence[Any], flags: Sequence[Flag]) -> Tensor:
    """The key `edit` of a batch, from the flags of its rows: (B,) bool, or (B, T) for tokens.

    The batch has one row for each of `rows`, or a single row in which collators without padding
    join them. It is a ValueError if a row has another number of flags than tokens.
    """
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    per_row = all(isinstance(flag, (bool, int)) for flag in flags)
    if per_row and len(ids) == len(flags):
        return torch.tensor([bool(flag) for flag in flags])
    of_tokens = [_of_tokens(row["input_ids"], flag) for row, flag in zip(rows, flags, strict=True)]
    edit = torch.zeros(ids.shape, dtype=torch.bool)
    if len(ids) == 1 and ids.shape[1] >= sum(map(len, of_tokens)):
        of_tokens = [torch.cat(of_tokens)]
    elif len(ids) != len(of_tokens) or ids.shape[1] < max(map(len, of_tokens)):
        raise ValueError(
            f"the base collator made input_ids {tuple(ids.shape)} of {len(rows)} rows with "
            f"{sum(map(len, of_tokens))} tokens, so it is not known to which tokens the column "
            "'edit' refers; let it return 'edit', a (B,) or (B, T) bool tensor"
        )
    for number, flags_of_row in enumerate(of_tokens):
        start = 0
        if isinstance(mask, Tensor) and mask.shape == ids.shape:
            start = int((mask[number] != 0).int().argmax())  # rows may be padded on the left
        edit[number, start : start + len(flags_of_row)] = flags_of_row
    return edit


def _of_tokens(ids: Any, flag: Flag) -> Tensor:
    if isinstance(flag, (bool, int)):
        return torch.full((len(ids),), bool(flag))
    if len(flag) != len(ids):
        raise ValueError(
            f"the column 'edit' has {len(flag)} flags for a row of {len(ids)} tokens; give one for "
            "the row, or one for each token"
        )
    return torch.tensor(flag, dtype=torch.bool)
