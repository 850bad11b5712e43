"""The documents in rows of data, as training saw them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..editing.edit import edit_tokens
from ..errors import first_line
from ..policy import EditPolicy
from ..prior.base import BasePrior
from ..stores.cache import DecisionCache
from ..stores.journal import Texts, keys_of
from ..stores.ragged import Array, ranges
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
    """

    ids: list[Array]
    row: Array
    place: Array
    tokens: Array
    lengths: Array

    @cached_property
    def keys(self) -> Array:
        """(N,) uint64, of the content of each document."""
        return keys_of(self.tokens, self.lengths.tolist())

    @property
    def start(self) -> Array:
        """(N,) int64, index of the first token of each document."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def row_of_token(self) -> Array:
        """(M,) int64, the row of each token."""
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
        return Documents(self.ids, np.repeat(self.row, num), self.place, self.tokens, lengths)


def find_documents(data: Data, batch: Batch) -> Documents:
    """The documents of tokenized rows, by `seq_lengths`, `position_ids` and `attention_mask`.

    An UnusableError names the row whose columns do not fit each other.
    """
    ids: list[Array] = []
    places: list[Array] = []
    rows: list[int] = []
    lengths: list[int] = []
    for number, (row, name) in enumerate(zip(batch.rows, batch.names, strict=True)):
        tokens = per_token(data, row, "input_ids", None, name)
        assert tokens is not None
        if (tokens < 0).any():
            raise data.error(f"{name} has the token {tokens.min()} in input_ids; ids are from 0")
        place, of_row = _documents_of_row(data, row, tokens, name)
        ids.append(tokens)
        places.append(place)
        rows += [number] * len(of_row)
        lengths += of_row
    tokens = _joined([t[p] for t, p in zip(ids, places, strict=True)])
    return Documents(
        ids, np.array(rows, np.int64), _joined(places), tokens, np.array(lengths, np.int64)
    )


def _documents_of_row(data: Data, row: Row, ids: Array, name: str) -> tuple[Array, list[int]]:
    """Places of the tokens that are no padding, and the lengths of the documents."""
    T = len(ids)
    lengths = per_token(data, row, "seq_lengths", None, name)
    if lengths is not None:
        if lengths.sum() != T or (lengths < 0).any():
            raise data.error(
                f"seq_lengths of {name} sum to {lengths.sum()}, but it has {T} tokens; {SAVE}"
            )
        return np.arange(T), lengths[lengths > 0].tolist()
    columns = [per_token(data, row, n, T, name) for n in ("attention_mask", "position_ids")]
    mask, positions = (None if c is None else torch.from_numpy(c)[None] for c in columns)
    if (mask is None and positions is None) or not T:
        return np.arange(T), [T] if T else []
    try:
        found = find_documents_of_rows(torch.from_numpy(ids)[None], mask, positions)
    except ValueError as error:
        raise data.error(f"{name}: {first_line(error)}") from None
    return found.index.numpy(), found.lengths


def labels_of(
    data: Data, batch: Batch, documents: Documents, prep: Preparation = SFT_DEFAULTS
) -> Array:
    """The labels of the documents' tokens, -100 where there is none: (M,) int64."""
    rows = zip(batch.rows, documents.ids, batch.names, strict=True)
    labels = [row_labels(data, row, ids, name, prep) for row, ids, name in rows]
    start = np.cumsum([0, *map(len, labels)])
    return _joined(labels)[start[documents.row_of_token] + documents.place]


def _joined(parts: list[Array]) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def by_length(lengths: Sequence[int] | Array, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of documents of similar length, in batches of at most `batch_tokens` with padding.

    The longest come first: if they do not fit into memory, a command fails at once. A longer
    document is a batch of its own.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    done = 0
    while done < len(order):
        chosen = order[done : done + max(1, batch_tokens // int(lengths[order[done]]))]
        done += len(chosen)
        yield chosen


COUNTS = ("scored", "selected", "changed", "dropped")


def edit_documents(
    prior: BasePrior, policy: EditPolicy, documents: Documents, labels: Array, *,
    batch_tokens: int, cache: DecisionCache | None,
) -> tuple[Texts, Array]:  # fmt: skip
    """Edit N documents of M tokens in batches of similar length, with the draws of epoch 0.

    `labels` are (M,) int64, and `batch_tokens` count padding, too. Other arguments, and errors, are
    those of `edit_tokens`.

    Returns:
        The documents after the edit; and (N, 4) int64 counts of tokens, see `COUNTS`.
    """
    texts = documents.texts()
    counts = np.zeros((len(documents.lengths), len(COUNTS)), np.int64)
    for chosen in map(np.array, by_length(documents.lengths, batch_tokens)):
        lengths = documents.lengths[chosen]
        place = ranges(texts.start[chosen], lengths)
        real = torch.arange(int(lengths[0])) < torch.from_numpy(lengths).unsqueeze(-1)
        input_ids = torch.zeros(real.shape, dtype=torch.int64)
        own_labels = torch.full_like(input_ids, -100)
        input_ids[real] = torch.from_numpy(documents.tokens[place])
        own_labels[real] = torch.from_numpy(labels[place])
        result = edit_tokens(
            prior, input_ids, attention_mask=real.long(), labels=own_labels, policy=policy,
            cache=cache,
        )  # fmt: skip
        edited = result.input_ids
        if result.source is not None:  # tokens were removed: move the others back to their places
            rows, columns = (result.source >= 0).nonzero().unbind(-1)
            edited = input_ids.clone()
            edited[rows, result.source[rows, columns]] = result.input_ids[rows, columns]
        texts.tokens[place] = edited[real].numpy()
        texts.removed[place] = result.dropped[real].numpy()
        counts[chosen] = torch.stack([getattr(result, name).sum(-1) for name in COUNTS], -1).numpy()
    return texts, counts


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

    A packed row gives several documents. Without a tokenizer, rows must have `input_ids`. Ids must
    be below the `vocab_size` of the prior. An UnusableError names the row that cannot be used.
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
    """Check that all tokens are in a prior's vocabulary; an UnusableError names the row."""
    outside = documents.tokens >= vocab_size
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        raise data.error(
            f"{batch.names[documents.row_of_token[at]]} has the token {documents.tokens[at]}, "
            f"which is not in the prior's vocabulary, [0, {vocab_size}); the data must be "
            "tokenized by the prior's tokenizer"
        )
