"""Rows of data after an edit, and the new files that they are written to."""

from __future__ import annotations

import datetime
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UnusableError, first_line
from ..stores.journal import Journal, Texts
from ..stores.ragged import Array
from .documents import Documents
from .parsing import KINDS, OPEN, Row
from .progress import no_bars_of_datasets
from .reading import Batch, Data, infer_features, with_json
from .tokens import CHAT_COLUMNS, PER_TOKEN, SFT_DEFAULTS, Preparation, is_chat, per_token

OUTPUT_HELP = (
    "a new .jsonl or .parquet file; or, with any other name, a new folder for "
    "datasets.load_from_disk"
)


class Reviser:
    """Writes edits into rows: ids, labels, masks, positions, lengths and text follow the tokens.

    Without a tokenizer, the column `text` is left out.

    Attributes:
        counts: rows, documents, known documents, tokens, changed and removed tokens so far.
        stale: columns that were left out, since they contain the text of the source.
    """

    def __init__(self, data: Data, tokenizer: Any, prep: Preparation = SFT_DEFAULTS) -> None:
        self.counts: Counter[str] = Counter()
        self.stale: set[str] = set()
        self._data, self._tokenizer, self._prep = data, tokenizer, prep

    def revise(
        self, batch: Batch, added: list[Array | None], documents: Documents, texts: Texts,
        known: Array,
    ) -> list[Row]:  # fmt: skip
        """The rows after the edit, which made `texts` of their N documents.

        The rows have tokens, and `added` is what `tokenize` returned for them. `known`, (N,) bool,
        marks the documents that the edit knows. An UnusableError names the column that does not fit
        the tokens of its row.
        """
        changed = (texts.tokens != documents.tokens) & ~texts.removed
        self.counts.update(
            rows=len(batch.rows), documents=len(known), known=int(known.sum()),
            tokens=len(documents.tokens), changed=int(changed.sum()),
            removed=int(texts.removed.sum()),
        )  # fmt: skip
        borders = np.searchsorted(documents.row_of_token, np.arange(len(batch.rows) + 1))
        revised = []
        for number, (row, name) in enumerate(zip(batch.rows, batch.names, strict=True)):
            of_row = slice(borders[number], borders[number + 1])
            place, old = documents.place[of_row], documents.ids[number]
            new, kept, in_text = old.copy(), np.ones(len(old), bool), np.zeros(len(old), bool)
            new[place] = texts.tokens[of_row]
            kept[place] = in_text[place] = ~texts.removed[of_row]
            edited = self._with_columns(row, name, old, new, kept)
            self._put_text(edited, old, new, in_text, added[number])
            revised.append(edited)
        return revised

    def _with_columns(self, row: Row, name: str, old: Array, new: Array, kept: Array) -> Row:
        row = dict(row)
        row["input_ids"] = new.tolist()
        labels = per_token(self._data, row, "labels", len(old), name)
        if labels is not None:
            row["labels"] = np.where((new != old) & (labels != -100), new, labels).tolist()
        if not kept.all():
            positions = per_token(self._data, row, "position_ids", len(old), name)
            if positions is not None:
                row["position_ids"] = _renumbered(positions, kept)
            if row.get("seq_lengths") is not None:
                ends = np.cumsum(row["seq_lengths"])
                num_kept = np.concatenate([[0], np.cumsum(kept)])
                row["seq_lengths"] = np.diff(num_kept[ends], prepend=0).tolist()
            for column in PER_TOKEN:
                if per_token(self._data, row, column, len(old), name) is not None:
                    row[column] = [v for v, k in zip(row[column], kept, strict=True) if k]
        return row

    def _put_text(
        self, row: Row, old: Array, new: Array, in_text: Array, added: Array | None
    ) -> None:
        """Write the column of text, and leave out chats; `in_text` marks the tokens to decode."""
        column = self._prep.dataset_text_field
        is_whole = not self._prep.truncation_mode or len(old) != self._prep.max_length
        is_source = added is not None and is_whole and in_text.all() and (old == new).all()
        if self._tokenizer is None:
            if row.pop(column, None) is not None:
                self.stale.add(column)
        elif not is_source:  # whose text decoding might change
            in_text = in_text if added is None else in_text & ~added
            row[column] = self._tokenizer.decode(
                new[in_text].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        for chat in CHAT_COLUMNS:
            if isinstance(row.get(chat), str) or (row.get(chat) and is_chat(row[chat])):
                del row[chat]
                self.stale.add(chat)


def _renumbered(positions: Array, kept: Array) -> list[int]:
    """(T,) positions in which the kept tokens of each document follow one another."""
    first = np.ones(len(positions), bool)
    first[1:] = np.diff(positions) != 1
    document = np.cumsum(first) - 1
    num_before = np.cumsum(~kept)
    # Removed tokens before each token in its own document, whose first token is never removed.
    in_document = num_before - num_before[np.flatnonzero(first)][document]
    return (positions - in_document).tolist()


def replay(
    data: Data, documents: Documents, journal: Journal, generation: int
) -> tuple[Texts, Array]:
    """All documents after a generation, and (N,) bool, those that the generation knows."""
    texts = documents.texts()
    try:
        journal.bring_forward(texts, documents.keys, generation)
    except ValueError as error:
        raise data.error(f"a document can't be replayed: {error}") from None
    return texts, journal.look_up(documents.keys, generation).known


def check_output(output: Path) -> None:
    """Check that rows can be written there, by its name."""
    if output.exists() or output.is_symlink():
        raise UnusableError(f"--output {output}: exists already; remove it, or name another")
    ending = output.suffix.lower()
    if ending not in (".jsonl", ".parquet") and ending in {*KINDS, *OPEN}:
        raise UnusableError(
            f"--output {output}: its name ends in {output.suffix!r}; write .jsonl or .parquet, "
            "or the name of a folder for datasets.load_from_disk"
        )


def write_rows(
    data: Data, reviser: Reviser, rows: Iterator[Row], target: Path, ending: str, bar: Any
) -> None:
    """Write rows that `reviser` made of `data`.

    The ending is ".jsonl", ".parquet", or another for a folder of `save_to_disk`. An UnusableError
    is raised if a row does not fit into such a file.
    """
    if ending.lower() == ".jsonl":
        _write_lines(data, rows, target)
    else:
        _write_dataset(data, reviser, rows, target, ending.lower() == ".parquet", bar)


def _write_lines(data: Data, rows: Iterator[Row], target: Path) -> None:
    """A row on each line; `Dataset.to_json` rounds numbers to ten digits."""

    def plain(value: Any) -> Any:
        if isinstance(value, datetime.date | datetime.time):
            return value.isoformat()
        raise data.error(
            f"a column holds {type(value).__name__}, which JSON can't hold; write to a folder"
        )

    with target.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=plain) + "\n")


def _write_dataset(
    data: Data, reviser: Reviser, rows: Iterator[Row], target: Path, is_parquet: bool, bar: Any
) -> None:
    import datasets

    first = next(rows, {})
    features = data.features()
    for name, feature in infer_features([first]).items():
        features.setdefault(name, feature)
    for name in reviser.stale:
        features.pop(name, None)
    for name in {*PER_TOKEN, "seq_lengths"} & set(features):
        if isinstance(features[name], datasets.List):
            features[name] = datasets.List(features[name].feature)  # of any length
    rows = chain([first] if first else [], rows)
    as_json = [name for name, one in features.items() if isinstance(one, datasets.Json)]
    try:
        with no_bars_of_datasets():
            dataset = datasets.Dataset.from_generator(
                lambda: (with_json(row, as_json) for row in rows),
                features=features,
                cache_dir=str(target.parent / "cache"),
                fingerprint=uuid.uuid4().hex,  # the generator cannot be hashed
            )
            bar.set_postfix_str("copying to its place")
            dataset.to_parquet(str(target)) if is_parquet else dataset.save_to_disk(str(target))
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, UnusableError | OSError):  # of the rows, or a full disk
            raise error.__cause__ from None
        raise data.error(
            f"a column does not fit its type, {features} ({first_line(error.__cause__ or error)}); "
            "write to a .jsonl file"
        ) from None
