"""The documents in rows of data, as training saw them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...stores.journal.frames import Array
from ...stores.journal.keys import keys_of
from ...stores.journal.replay import Texts
from ..errors import UnusableError
from .rows import Batch, Data, Row

_NO_TOKENS = (
    "save the data that was trained on, trainer.train_dataset.save_to_disk(FOLDER), and give "
    "--data FOLDER"
)


@dataclass(frozen=True)
class Documents:
    """N documents of M tokens in R rows; what is padding in a row belongs to none.

    Attributes:
        ids: of each row, (T,) int64.
        row: (N,) int64, each document's row.
        place: (M,) int64, where in its row each token stands.
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
        """(N,) int64, which of the M tokens is the first of each document."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def row_of_token(self) -> Array:
        """(M,) int64."""
        return np.repeat(self.row, self.lengths)

    def texts(self) -> Texts:
        """The documents, to be brought forward."""
        return Texts.of(self.tokens, self.start)


def tokenize(data: Data, batch: Batch, tokenizer: Any) -> list[Array | None]:
    """Give rows that have only `text` their `input_ids`, in place.

    Returns:
        For each row, (T,) bool, True at special tokens that the tokenizer added; None for a row
        that had its tokens.

    Raises:
        UnusableError: a row has neither, or there is no tokenizer.
    """
    added: list[Array | None] = [None] * len(batch.rows)
    without = [i for i, row in enumerate(batch.rows) if row.get("input_ids") is None]
    if not without:
        return added
    for i in without:
        row, name = batch.rows[i], batch.names[i]
        if not isinstance(row.get("text"), str):
            raise data.error(
                f"{name} has the columns {sorted(row)}, no input_ids and no text; {_NO_TOKENS}"
            )
        if tokenizer is None:
            raise data.error(
                f"{name} has text and no input_ids; add --tokenizer, which then must give what "
                f"training saw, or better: {_NO_TOKENS}"
            )
    texts = [batch.rows[i]["text"] for i in without]
    # Not verbose: documents longer than the model takes are nothing to warn of here.
    encoded = tokenizer(texts, return_special_tokens_mask=True, verbose=False)
    for i, ids, special in zip(
        without, encoded["input_ids"], encoded["special_tokens_mask"], strict=True
    ):
        batch.rows[i]["input_ids"] = ids
        added[i] = np.array(special, bool)
    return added


def find_documents(data: Data, batch: Batch) -> Documents:
    """The documents of tokenized rows, by `seq_lengths`, `position_ids` and `attention_mask`.

    Raises:
        UnusableError: a row's columns do not fit each other.
    """
    ids, row, place, borders = [], [], [], []
    for number, (of, name) in enumerate(zip(batch.rows, batch.names, strict=True)):
        tokens = _whole_numbers(data, of, "input_ids", name)
        if (tokens < 0).any():
            raise data.error(f"{name} has the token {tokens.min()} in input_ids; ids are from 0")
        here, first = _documents_of_row(data, of, len(tokens), name)
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


def _documents_of_row(data: Data, row: Row, T: int, name: str) -> tuple[Array, Array]:
    """Places of the tokens that are no padding, and whether each is the first of its document."""
    place = np.arange(T)
    if row.get("seq_lengths") is not None:
        lengths = _whole_numbers(data, row, "seq_lengths", name)
        if lengths.sum() != T or (lengths < 0).any():
            raise data.error(
                f"seq_lengths of {name} sum to {lengths.sum()}, but it has {T} tokens; {_NO_TOKENS}"
            )
        first = np.zeros(T, bool)
        first[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
        return place, first
    if row.get("attention_mask") is not None:
        place = np.flatnonzero(_per_token(data, row, "attention_mask", T, name))
    first = np.zeros(len(place), bool)
    first[:1] = True
    if row.get("position_ids") is not None:
        # The rule by which training tells documents: see `layout.find_documents`.
        first[1:] = np.diff(_per_token(data, row, "position_ids", T, name)[place]) != 1
    return place, first


def _per_token(data: Data, row: Row, column: str, T: int, name: str) -> Array:
    values = _whole_numbers(data, row, column, name)
    if len(values) != T:
        raise data.error(
            f"{column} of {name} holds {len(values)} numbers, input_ids {T}; {_NO_TOKENS}"
        )
    return values


def _whole_numbers(data: Data, row: Row, column: str, name: str) -> Array:
    value = row[column]
    try:
        numbers = np.asarray(value)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iub"):
            raise TypeError
    except (TypeError, ValueError):
        raise data.error(
            f"{column} of {name} must be a list of whole numbers, got {str(value)[:40]}; "
            f"{_NO_TOKENS}"
        ) from None
    return numbers.astype(np.int64)


def _joined(parts: list[Array]) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def check_known(num_known: int, data: str, generation: int) -> None:
    """See that a generation knows documents.

    Raises:
        UnusableError: it knows none.
    """
    if not num_known:
        raise UnusableError(
            f"--data {data}: generation {generation} of the journal knows none of its documents; "
            "they probably were tokenized, truncated or packed otherwise in training, or are "
            f"others: {_NO_TOKENS}"
        )
