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
        pad_to_multiple_of: length of the rows; None: that of the longest.

    Raises:
        ValueError: on the first call, there is no tokenizer, or it has no padding token, or the
            rows are packed.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.pad_to_multiple_of = pad_to_multiple_of

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
        for row in rows:
            if not hasattr(row.get("input_ids"), "__len__"):
                raise ValueError(
                    f"a row has the fields {sorted(map(str, row))} and no list of input_ids; "
                    "tokenize the dataset first, or pass the base_collator that does"
                )
        can_pad = self.tokenizer.pad_token_id is not None
        lengths = {len(row["input_ids"]) for row in rows}
        if not can_pad and (len(lengths) > 1 or max(lengths) % (self.pad_to_multiple_of or 1)):
            raise ValueError(
                "the tokenizer has no padding token, but rows must be padded; set "
                "tokenizer.pad_token = tokenizer.eos_token, or pass a base_collator"
            )
        for row in rows:
            row.setdefault("labels", list(row["input_ids"]))
        multiple = self.pad_to_multiple_of if can_pad else None
        pad = DataCollatorForSeq2Seq(self.tokenizer, padding=can_pad, pad_to_multiple_of=multiple)
        return pad(rows)

    def __repr__(self) -> str:
        return "DefaultCollator()"
