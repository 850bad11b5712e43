"""Reads documents from files or rows, and groups them into batches of similar length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch

from ..data import Data, Example, by_length, open_data
from ..tokens.token_batch import TokenBatch

Source = str | Path | Data | Iterable[dict[str, Any] | str]
# Documents are sorted by length inside a window of this many batches.
_BATCHES_PER_WINDOW = 8


def _named(rows: Iterable[dict[str, Any] | str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows in memory, or from any iterable, with their names for messages."""
    for number, row in enumerate(rows):
        yield f"row {number} (from 0)", dict(row) if isinstance(row, Mapping) else {"text": row}


def as_data(source: Source, split: str | None = None) -> Data:
    """Open what a user named, or rows that a notebook holds.

    Raises:
        UnusableError: there is no such file.
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, (str, Path)):
        return open_data(source, split)
    num_rows = len(source) if isinstance(source, Sized) else None
    return Data("rows", "", lambda: _named(source), num_rows=num_rows)


def in_batches(documents: Iterable[Example], batch_tokens: int) -> Iterator[list[Example]]:
    """Group documents of similar length; skips documents of one token, which have no score.

    Args:
        documents: read one by one; at most a few batches are held.
        batch_tokens: the most tokens of a batch, with padding; a longer document comes alone.
    """
    window: list[Example] = []
    num_tokens = 0
    for document in documents:
        if len(document.ids) < 2:
            continue
        window.append(document)
        num_tokens += len(document.ids)
        if num_tokens >= _BATCHES_PER_WINDOW * batch_tokens:
            yield from _of_similar_length(window, batch_tokens)
            window, num_tokens = [], 0
    yield from _of_similar_length(window, batch_tokens)


def _of_similar_length(documents: list[Example], batch_tokens: int) -> Iterator[list[Example]]:
    for places in by_length([len(one.ids) for one in documents], batch_tokens):
        yield [documents[i] for i in places]


def as_token_batch(documents: Sequence[Example]) -> TokenBatch:
    """One document per row, padded on the right."""
    T = max(len(document.ids) for document in documents)
    input_ids = torch.zeros(len(documents), T, dtype=torch.int64)
    labels = torch.full_like(input_ids, -100)
    mask = torch.zeros_like(input_ids)
    for row, document in enumerate(documents):
        length = len(document.ids)
        input_ids[row, :length] = torch.tensor(document.ids)
        labels[row, :length] = torch.tensor(document.labels)
        mask[row, :length] = 1
    return TokenBatch.of(input_ids, mask, None, labels)
