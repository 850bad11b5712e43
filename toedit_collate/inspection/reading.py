"""Reads documents from files or rows, and groups them into batches of similar length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ..data import Data, Example, by_length, open_data
from ..tokens.token_batch import TokenBatch

Source = str | Path | Data | Iterable[dict[str, Any] | str]
# Documents are sorted by length inside a window of this many batches.
_BATCHES_PER_WINDOW = 8


def as_data(source: Source, split: str | None = None) -> Data:
    """Open what a user named, or rows that a notebook holds.

    Raises:
        UnusableError: there is no such file.
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, (str, Path)):
        return open_data(source, split)

    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(source):
            yield f"row {number} (from 0)", {"text": row} if isinstance(row, str) else dict(row)

    return Data("rows", "", read)


def in_batches(documents: Iterable[Example], batch_tokens: int) -> Iterator[list[Example]]:
    """Group documents of similar length; skips documents of one token, which have no score.

    Args:
        documents: read one by one; at most a few batches are held.
        batch_tokens: the most tokens of a batch, with padding; a longer document comes alone.
    """
    scorable = (document for document in documents if len(document.ids) > 1)
    while window := _take(scorable, _BATCHES_PER_WINDOW * batch_tokens):
        for places in by_length([len(one.ids) for one in window], batch_tokens):
            yield [window[i] for i in places]


def _take(documents: Iterator[Example], num_tokens: int) -> list[Example]:
    """The next documents that have `num_tokens` tokens together, or all that are left."""
    taken: list[Example] = []
    while num_tokens > 0 and (document := next(documents, None)):
        taken.append(document)
        num_tokens -= len(document.ids)
    return taken


def as_token_batch(documents: Sequence[Example]) -> TokenBatch:
    """One document per row, padded on the right."""
    ids = [torch.tensor(document.ids) for document in documents]
    labels = [torch.tensor(document.labels) for document in documents]
    return TokenBatch.of(
        pad_sequence(ids, batch_first=True),
        pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        None,
        pad_sequence(labels, batch_first=True, padding_value=-100),
    )
