"""The documents to look at: from a file that a user names, or from rows that a notebook holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..data import Batch, Data, examples, open_data

Source = str | Path | Data | Iterable[dict[str, Any] | str]
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class SourceDocument:
    """One document, or one window of a long one.

    Attributes:
        number: in the order of the file, from 0.
        name: of its row, for messages: "line 3".
        ids: T token ids.
        labels: the same, or -100 where a token has no label.
        start: of the window in its document, in tokens.
    """

    number: int
    name: str
    ids: list[int]
    labels: list[int]
    start: int


class _Rows(Data):
    """Rows that are in memory already, or come from somewhere else."""

    def __init__(self, rows: Iterable[dict[str, Any] | str]) -> None:
        super().__init__("rows", "")
        self._rows = rows

    def count_rows(self) -> int | None:
        return len(self._rows) if isinstance(self._rows, Sized) else None

    def batches(self) -> Iterator[Batch]:
        rows = iter(self._rows)
        number = 0
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            as_dicts = [{"text": row} if isinstance(row, str) else dict(row) for row in some]
            yield Batch(as_dicts, [f"row {number + i} (from 0)" for i in range(len(some))])
            number += len(some)


def as_data(source: Source, split: str | None = None) -> Data:
    """What a user gave, as something to read rows from.

    Raises:
        UnusableError: there is no such file.
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, (str, Path)):
        return open_data(source, split)
    return _Rows(source)


def name_of(source: Source) -> str:
    """What a user gave, in words."""
    if isinstance(source, Data):
        return source.name
    return str(source) if isinstance(source, (str, Path)) else "rows"


def read_documents(
    source: Source, tokenizer: Any, *, max_length: int | None, vocab_size: int | None = None,
    assistant_only: bool = False, eos: bool = True,
) -> Iterator[SourceDocument]:  # fmt: skip
    """Read documents one by one, tokenized as in training; memory stays bounded.

    Args:
        source: see `inspect_edits`.
        tokenizer: for text and chats.
        max_length: longer documents are cut into windows of so many tokens; None: they are not.
        vocab_size: of the prior; None: ids are not checked.
        assistant_only: in chats, only the assistant's turns have labels.
        eos: end text by an end token, as SFTTrainer and the recipes do.

    Raises:
        UnusableError: a row can't be used; it is named.
    """
    found = examples(
        as_data(source), tokenizer, max_length=max_length, vocab_size=vocab_size,
        assistant_only=assistant_only, eos=eos,
    )  # fmt: skip
    for number, one in enumerate(found):
        name = one.name if not one.start else f"{one.name}, from token {one.start}"
        yield SourceDocument(number, name, one.ids, one.labels, one.start)
