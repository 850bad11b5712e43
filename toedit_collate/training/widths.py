"""Rows that lost tokens are padded again as the base collator pads them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..tokens.result import EditResult


def padding_multiple(base_collator: Any, batch: Mapping[str, Any]) -> int | None:
    """Of what the length of a collator's rows is a multiple; None: they end with the longest.

    Args:
        base_collator: with an attribute `pad_to_multiple_of`, as the collators of transformers and
            TRL have it, or with `padding="max_length"`; or a partial function of these, or another
            collator around one.
        batch: what it made.
    """
    while base_collator is not None:
        settings = getattr(base_collator, "keywords", {})  # of functools.partial

        def setting(name: str, of: Any = base_collator, given: Any = settings) -> Any:
            return given.get(name, getattr(of, name, None))

        padding = setting("padding")
        if getattr(padding, "value", padding) == "max_length" and setting("max_length"):
            return int(batch["input_ids"].shape[-1])
        if setting("pad_to_multiple_of"):
            return int(setting("pad_to_multiple_of"))
        if isinstance(base_collator, functools.partial):
            base_collator = base_collator.func
        else:
            base_collator = getattr(base_collator, "data_collator", None)
    return None


def widened(result: EditResult, multiple: int | None, pad_id: int) -> EditResult:
    """An edit that removed tokens, with rows padded to a multiple.

    Args:
        result: its rows are (B, T').
        multiple: None: rows stay as they are.
        pad_id: of rows without padding.
    """
    B, width = result.input_ids.shape
    missing = -width % multiple if multiple else 0
    if not missing or result.source is None:
        return result
    mask, source = result.attention_mask, result.source
    on_the_left = bool(((source[:, 0] < 0) & (source[:, -1] >= 0)).any())
    if (source < 0).any():
        pad_id = int(result.input_ids[source < 0][0])

    def padded(rows: Tensor | None, value: int) -> Tensor | None:
        if rows is None:
            return None
        padding = rows.new_full((B, missing), value)
        return torch.cat([padding, rows] if on_the_left else [rows, padding], dim=1)

    new_ids, new_tokens = padded(result.input_ids, pad_id), padded(result.tokens, pad_id)
    new_source = padded(source, -1)
    assert new_ids is not None
    assert new_tokens is not None
    assert new_source is not None
    if mask is None and result.position_ids is None:
        mask = torch.ones_like(result.input_ids)
    return dataclasses.replace(
        result,
        input_ids=new_ids,
        tokens=new_tokens,
        labels=padded(result.labels, -100),
        attention_mask=padded(mask, 0),
        # In a packed row without a mask, padding is documents of one token.
        position_ids=padded(result.position_ids, 0),
        source=new_source,
    )
