"""Rows of data after an edit, for example after a generation of a journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import UnusableError
from ..stores.journal import Journal, Texts
from ..stores.ragged import Array
from .documents import Documents, find_documents
from .parsing import Row
from .reading import Batch, Data
from .tokens import CHAT_COLUMNS, PER_TOKEN, SFT_DEFAULTS, Preparation, is_chat, tokenize

# Columns that are updated one by one, or never have a value for each token.
_OTHERS = {"input_ids", "labels", "position_ids", "seq_lengths"}


Edit = Callable[[Batch, Documents], tuple[Texts, Array]]


class Reviser:
    """Applies an edit to rows.

    Args:
        data: source of the rows, for messages.
        edit: returns the documents of a batch after the edit, and (N,) bool, those that it knows.
        tokenizer: for rows of text, and for the column `text`; None: there is neither.
        prep: how rows become tokens.

    Attributes:
        counts: rows, documents, known documents, tokens, changed and removed tokens so far.
        stale: columns that were left out, since they contain the text of the source.
    """

    def __init__(
        self, data: Data, edit: Edit, tokenizer: Any, prep: Preparation = SFT_DEFAULTS
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.stale: set[str] = set()
        self._prep = prep
        self._data = data
        self._edit = edit
        self._tokenizer = tokenizer
        self._aligned: list[str] | None = None

    def aligned_columns(self, rows: list[Row]) -> list[str]:
        """Columns with a value for each token, without those in `_OTHERS`.

        Several rows decide: a single list may have the length of its row by chance.
        """
        if self._aligned is None:
            found: dict[str, bool] = {}
            for row in rows:
                T = len(row["input_ids"])
                for name, value in row.items():
                    if value is not None:
                        fits = isinstance(value, list) and len(value) == T
                        found[name] = found.get(name, True) and fits
            found.update(dict.fromkeys(PER_TOKEN, True))
            self._aligned = [name for name, fits in found.items() if fits and name not in _OTHERS]
        return self._aligned

    def revise(self, batch: Batch) -> list[Row]:
        """The rows after the edit. Rows of `batch` may be changed.

        Raises:
            UnusableError: a row cannot be used, or the edit does not fit.
        """
        added = tokenize(self._data, batch, self._tokenizer, self._prep)
        documents = find_documents(self._data, batch).cut(self._prep.window)
        self.aligned_columns(batch.rows)
        texts, known = self._edit(batch, documents)
        self.counts["rows"] += len(batch.rows)
        self.counts["documents"] += len(known)
        self.counts["known"] += int(known.sum())
        self.counts["tokens"] += len(documents.tokens)
        self.counts["removed"] += int(texts.removed.sum())
        self.counts["changed"] += int((texts.tokens != documents.tokens)[~texts.removed].sum())
        row_of_token = documents.row_of_token
        borders = np.searchsorted(row_of_token, np.arange(len(batch.rows) + 1))
        revised = []
        for number, old in enumerate(documents.ids):
            of_row = slice(borders[number], borders[number + 1])
            place = documents.place[of_row]
            new, kept, real = old.copy(), np.ones(len(old), bool), np.zeros(len(old), bool)
            new[place] = texts.tokens[of_row]
            kept[place] = ~texts.removed[of_row]
            real[place] = True
            row = self._row(batch, number, old, new, kept)
            self._put_text(row, old, new, kept & real, added[number])
            self._leave_out_chats(row)
            revised.append(row)
        return revised

    def _row(self, batch: Batch, number: int, old: Array, new: Array, kept: Array) -> Row:
        row, name = dict(batch.rows[number]), batch.names[number]
        row["input_ids"] = new[kept].tolist()
        if row.get("labels") is not None:
            labels = np.asarray(self._aligned_value(row, "labels", len(old), name))
            row["labels"] = np.where((new != old) & (labels != -100), new, labels)[kept].tolist()
        if kept.all():
            return row
        for column in self.aligned_columns(batch.rows):
            if row.get(column) is not None:
                value = self._aligned_value(row, column, len(old), name)
                row[column] = [v for v, k in zip(value, kept, strict=True) if k]
        if row.get("position_ids") is not None:
            row["position_ids"] = _renumbered(np.asarray(row["position_ids"]), kept)
        if row.get("seq_lengths") is not None:
            ends = np.cumsum(row["seq_lengths"])
            num_kept = np.concatenate([[0], np.cumsum(kept)])
            row["seq_lengths"] = np.diff(num_kept[ends], prepend=0).tolist()
        return row

    def _aligned_value(self, row: Row, column: str, T: int, name: str) -> list[Any]:
        value = row[column]
        if not isinstance(value, list) or len(value) != T:
            seen = f"{len(value)} values" if isinstance(value, list) else type(value).__name__
            raise self._data.error(
                f"{column} of {name} should hold a value for each of its {T} tokens, got {seen}; "
                "remove or rename the column"
            )
        return value

    def _put_text(self, row: Row, old: Array, new: Array, kept: Array, added: Array | None) -> None:
        column = self._prep.dataset_text_field
        if self._tokenizer is None:
            if row.pop(column, None) is not None:
                self.stale.add(column)
            return
        if added is not None:
            was_cut = bool(self._prep.truncation_mode) and len(old) == self._prep.max_length
            if kept.all() and (old == new).all() and not was_cut:
                return  # unchanged: decoding might return another text
            kept = kept & ~added
        row[column] = self._tokenizer.decode(
            new[kept].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _leave_out_chats(self, row: Row) -> None:
        for column in CHAT_COLUMNS:
            if isinstance(row.get(column), str) or (row.get(column) and is_chat(row[column])):
                del row[column]
                self.stale.add(column)


def _renumbered(positions: Array, kept: Array) -> list[int]:
    """Positions of the kept tokens; the start of each document keeps its position."""
    first = np.ones(len(positions), bool)
    first[1:] = np.diff(positions) != 1
    document = np.cumsum(first) - 1
    num_before = np.cumsum(~kept)
    # Removed tokens before each token in its own document, whose first token is never removed.
    in_document = num_before - num_before[np.flatnonzero(first)][document]
    return (positions - in_document)[kept].tolist()


def replay(
    data: Data, batch: Batch, documents: Documents, journal: Journal, generation: int
) -> tuple[Texts, Array]:
    """All documents after a generation, and (N,) bool, those that the generation knows.

    Raises:
        UnusableError: the changes belong to other tokens.
    """
    texts = documents.texts()
    try:
        journal.bring_forward(texts, documents.keys, generation)
    except ValueError:
        raise _name_document(data, batch, documents, journal, generation) from None
    return texts, journal.look_up(documents.keys, generation).known


def _name_document(
    data: Data, batch: Batch, documents: Documents, journal: Journal, generation: int
) -> UnusableError:
    """The error about the first document that cannot be replayed."""
    for number, start in enumerate(documents.start):
        end = start + documents.lengths[number]
        alone = Texts.of(documents.tokens[start:end], np.zeros(1, np.int64))
        try:
            journal.bring_forward(alone, documents.keys[number : number + 1], generation)
        except ValueError as error:
            name = batch.names[documents.row[number]]
            return data.error(f"a document of {name} can't be replayed: {error}")
    raise AssertionError("documents that can be replayed one by one can't be replayed together")
