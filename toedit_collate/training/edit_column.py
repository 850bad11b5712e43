"""The dataset column `edit`: rows and tokens that must not be edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UnusableError

Flag = bool | Sequence[bool]  # of a row, or of each of its tokens


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
            "the data has a column 'edit', and TRL's packing drops it, so that rows with "
            "edit=False would be edited; set packing: false, or give each source its own entry, as "
            "in datasets: [{name: A}, {name: B, edit: false}], which recipes/cpt.py and "
            "recipes/pretrain.py pack one by one"
        )


def edit_key(batch: Mapping[str, Any], rows: Sequence[Any], flags: Sequence[Flag]) -> Tensor:
    """The key `edit` of a batch, from the flags of its rows: (B,) bool, or (B, T) for tokens.

    Args:
        batch: as collated, with `input_ids` (B, T): one row for each of `rows`, or all of them
            joined in a single row, as collators without padding do.
        rows: n of them, each with its `input_ids`.
        flags: n; a bool, or one for each token of the row.

    Raises:
        ValueError: a row has another number of flags than tokens, or the batch has another form.
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
            f"the dataset has a column 'edit', and the base collator made input_ids "
            f"{tuple(ids.shape)} of {len(rows)} rows with {sum(map(len, of_tokens))} tokens, so it "
            "is not known which tokens are which row's; let the base collator return 'edit', a "
            "(B,) or (B, T) bool tensor"
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
