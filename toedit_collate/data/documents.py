"""The documents in rows of data, as training saw them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import UnusableError, first_line
from ..stores.journal import Texts, keys_of
from ..stores.ragged import Array
from ..tokens.documents import find_documents as find_documents_of_rows
from .parsing import Row
from .reading import Batch, Data
from .tokens import SAVE, SFT_DEFAULTS, Preparation, per_token, row_labels, tokenize


@dataclass(frozen=True)
class Documents:
    """N documents of M tokens in R rows, without padding.

    Attributes:
        ids: of each row, (T,) int64.
        row: (N,) int64, each document's row.
        place: (M,) int64, index of each token in its row.
        tokens: (M,) int64, of all documents, one after the other.
        lengths: (N,) int64.
        keys: (N,) uint64.
    """

    ids: list[Array]
    row: Array
    place: Array
    tokens: Array
    lengths: Array
    keys: Array

    @property
    def start(self) -> Array:
        """(N,) int64, index of the first token of each document."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def row_of_token(self) -> Array:
        """(M,) int64."""
        return np.repeat(self.row, self.lengths)

    def texts(self) -> Texts:
        """The documents, to be brought forward."""
        return Texts.of(self.tokens, self.start)

    def cut(self, max_length: int | None) -> Documents:
        """The same tokens with longer documents cut into several, each scored on its own.

        Training does so if rows are packed by "wrapped" or "bfd_split".
        """
        if max_length is None or (self.lengths <= max_length).all():
            return self
        num = -(-self.lengths // max_length)
        lengths = np.full(num.sum(), max_length)
        last = np.cumsum(num) - 1
        lengths[last] = self.lengths - (num - 1) * max_length
        keys = keys_of(torch.from_numpy(self.tokens), lengths.tolist())
        return Documents(self.ids, np.repeat(self.row, num), self.place, self.tokens, lengths, keys)


def find_documents(data: Data, batch: Batch) -> Documents:
    """The documents of tokenized rows, by `seq_lengths`, `position_ids` and `attention_mask`.

    Raises:
        UnusableError: a row's columns do not fit each other.
    """
    ids, row, place, borders = [], [], [], []
    for number, (of, name) in enumerate(zip(batch.rows, batch.names, strict=True)):
        tokens = per_token(data, of, "input_ids", None, name)
        assert tokens is not None
        if (tokens < 0).any():
            raise data.error(f"{name} has the token {tokens.min()} in input_ids; ids are from 0")
        here, first = _documents_of_row(data, of, tokens, name)
        ids.append(tokens)
        row.append(np.full(len(here), number))
        place.append(here)
        borders.append(first)
    rows, places = _joined(row), _joined(place)
    first = np.flatnonzero(_joined(borders))
    tokens = _joined([t[p] for t, p in zip(ids, place, strict=True)])
    lengths = np.diff(first, append=len(tokens))
    keys = keys_of(torch.from_numpy(tokens), lengths.tolist())
    return Documents(ids, rows[first], places, tokens, lengths, keys)


def _documents_of_row(data: Data, row: Row, ids: Array, name: str) -> tuple[Array, Array]:
    """Places of the tokens that are no padding, and whether each is the first of its document."""
    T = len(ids)
    first = np.zeros(T, bool)
    lengths = per_token(data, row, "seq_lengths", None, name)
    if lengths is not None:
        if lengths.sum() != T or (lengths < 0).any():
            raise data.error(
                f"seq_lengths of {name} sum to {lengths.sum()}, but it has {T} tokens; {SAVE}"
            )
        first[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
        return np.arange(T), first
    columns = [per_token(data, row, n, T, name) for n in ("attention_mask", "position_ids")]
    mask, positions = (None if c is None else torch.from_numpy(c)[None] for c in columns)
    if (mask is None and positions is None) or not T:
        first[:1] = True
        return np.arange(T), first
    try:
        found = find_documents_of_rows(torch.from_numpy(ids)[None], mask, positions)
    except ValueError as error:
        raise data.error(f"{name}: {first_line(error)}") from None
    first[found.start.numpy()] = True
    return found.index.numpy(), first[: found.num_tokens]


def labels_of(
    data: Data, batch: Batch, documents: Documents, prep: Preparation = SFT_DEFAULTS
) -> Array:
    """The labels of the documents' tokens, -100 where there is none: (M,) int64.

    Raises:
        UnusableError: see `row_labels`.
    """
    rows = zip(batch.rows, documents.ids, batch.names, strict=True)
    labels = [row_labels(data, row, ids, name, prep) for row, ids, name in rows]
    start = np.cumsum([0, *map(len, labels)])
    return _joined(labels)[start[documents.row_of_token] + documents.place]


def _joined(parts: list[Array]) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def check_known(num_known: int, data: str, generation: int) -> None:
    """Check that a generation knows documents.

    Raises:
        UnusableError: it knows none.
    """
    if not num_known:
        raise UnusableError(
            f"--data {data}: generation {generation} of the journal knows none of its documents; "
            "training used other documents, or tokenized, truncated or packed otherwise: "
            f"{SAVE}"
        )


def by_length(lengths: Sequence[int] | Array, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of documents of similar length, in batches of at most `batch_tokens` with padding.

    The longest come first: if they do not fit into memory, a command fails at once. A longer
    document is a batch of its own.

    Example:
        >>> list(by_length([2, 5, 3], 6))
        [[1], [2, 0]]
    """
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    done = 0
    while done < len(order):
        chosen = order[done : done + max(1, batch_tokens // int(lengths[order[done]]))]
        done += len(chosen)
        yield chosen


@dataclass(frozen=True)
class Example:
    """One document, or one window of a long one.

    Attributes:
        number: among all examples, from 0.
        name: of its row, for messages: "line 3", or "line 3, from token 512".
        ids: T token ids.
        labels: T token ids, -100 where a token has no label.
        start: of the window in its document, in tokens.
        row: as it was read.
    """

    number: int
    name: str
    ids: list[int]
    labels: list[int]
    start: int
    row: Row


def examples(
    data: Data, tokenizer: Any, prep: Preparation = SFT_DEFAULTS, *, vocab_size: int | None = None
) -> Iterator[Example]:
    """Read all documents as training sees them; memory stays bounded.

    Args:
        data: see `open_data`. A packed row gives several documents.
        tokenizer: for text and chats; None: rows must have `input_ids`.
        prep: how rows become tokens, and longer documents windows.
        vocab_size: of the prior; None: ids are not checked.

    Raises:
        UnusableError: a row cannot be used; names it.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.jsonl"
        >>> _ = file.write_text('{"input_ids": [5, 6, 7, 8, 9]}')
        >>> from toedit_collate.data import Preparation, open_data
        >>> [example.ids for example in examples(open_data(file), None, Preparation(max_length=3))]
        [[5, 6, 7], [8, 9]]
    """
    count = itertools.count()
    for batch in data.batches():
        own = Batch([dict(row) for row in batch.rows], batch.names)
        tokenize(data, own, tokenizer, prep)
        documents = find_documents(data, own)
        if vocab_size is not None:
            check_ids(data, own, documents, vocab_size)
        labels = labels_of(data, own, documents, prep)
        start = documents.start
        windows = documents.cut(prep.window)
        begins = windows.start
        of = np.searchsorted(start, begins, side="right") - 1
        for number, (begin, row) in enumerate(zip(begins, windows.row, strict=True)):
            end = begin + windows.lengths[number]
            at = int(begin - start[of[number]])
            yield Example(
                number=next(count),
                name=batch.names[row] + (f", from token {at}" if at else ""),
                ids=windows.tokens[begin:end].tolist(),
                labels=labels[begin:end].tolist(),
                start=at,
                row=batch.rows[row],
            )


def check_ids(data: Data, batch: Batch, documents: Documents, vocab_size: int) -> None:
    """Check that all tokens are in a prior's vocabulary.

    Raises:
        UnusableError: one is not; names its row.
    """
    outside = documents.tokens >= vocab_size
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        raise data.error(
            f"{batch.names[documents.row_of_token[at]]} has the token {documents.tokens[at]}, "
            f"which is not in the prior's vocabulary, [0, {vocab_size}); the data must be "
            "tokenized by the prior's tokenizer"
        )
