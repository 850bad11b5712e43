"""The base collator for users who name none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class DefaultCollator:
    """Pads tokenized rows to the longest, with transformers' own collator.

    Rows with `labels` keep them (padded with -100); in rows without, every token is a label,
    end-of-sequence tokens included, and padding is not.

    Args:
        tokenizer: pads; needed at the first call. It needs a padding token where rows differ in
            length.

    Raises:
        ValueError: on the first call, there is no tokenizer, or it has no padding token, or the
            rows are packed.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, features: list[Any]) -> Any:
        """Pad rows (dicts, or lists of ids) to a batch with `input_ids`, `labels` and a mask."""
        from transformers import DataCollatorForSeq2Seq

        if self.tokenizer is None:
            raise ValueError(
                "there is no base_collator, and no tokenizer to pad with; pass base_collator=..., "
                "or tokenizer=..., or give the Prior its tokenizer"
            )
        rows = [dict(row) if isinstance(row, Mapping) else {"input_ids": row} for row in features]
        if any("seq_lengths" in row for row in rows):
            raise ValueError(
                "the rows are packed (they have seq_lengths), which the default base collator "
                "would not keep apart; use attach(trainer, prior, policy) for packing"
            )
        can_pad = self.tokenizer.pad_token_id is not None
        if not can_pad and len({len(row["input_ids"]) for row in rows}) > 1:
            raise ValueError(
                "the tokenizer has no padding token, but rows differ in length; set "
                "tokenizer.pad_token = tokenizer.eos_token, or pass a base_collator"
            )
        for row in rows:
            row.setdefault("labels", list(row["input_ids"]))
        return DataCollatorForSeq2Seq(self.tokenizer, padding=can_pad)(rows)

    def __repr__(self) -> str:
        return "DefaultCollator()"
