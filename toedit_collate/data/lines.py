"""Files of text that are read line by line, by commands and recipes alike: .jsonl, .csv, .txt."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import first_line
from .rows import BATCH_SIZE, Batch, Data, Row, need_datasets

_LONGEST_FIELD = 2**31 - 1  # of a .csv; Python's own limit, 128 KiB, is a short document


class TextRows(Data):
    """A file of UTF-8 text that is read line by line; what a row is, subclasses say."""

    def __init__(self, path: Path, option: str = "--data") -> None:
        super().__init__(path, option)
        self.path = path

    def count_rows(self) -> int | None:
        return sum(1 for _ in self.rows())

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Each row with its name."""
        raise NotImplementedError

    def batches(self) -> Iterator[Batch]:
        rows: list[Row] = []
        names: list[str] = []
        for name, row in self.rows():
            rows.append(row)
            names.append(name)
            if len(rows) == BATCH_SIZE:
                yield Batch(rows, names)
                rows, names = [], []
        if rows:
            yield Batch(rows, names)

    def features(self) -> Any:
        """Of all rows: the first ones may lack a column, or have null in it."""
        import pyarrow as pa

        schema = pa.schema([])
        for batch in self.batches():
            try:
                fields = pa.schema(list(pa.array(batch.rows).type))
                schema = pa.unify_schemas([schema, fields], promote_options="permissive")
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise self.error(
                    f"a column is of several types up to {batch.names[-1]} ({first_line(error)}), "
                    "which a dataset can't hold; write to a .jsonl file"
                ) from None
        return need_datasets().Features.from_arrow_schema(schema)

    def lines(self) -> Iterator[tuple[int, str]]:
        """The lines, with their ends, and their numbers from 1."""
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    try:
                        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    except UnicodeDecodeError as error:
                        raise self.error(
                            f"line {number} can't be read ({first_line(error)}): {line[:40]!r}; "
                            "the file must be UTF-8"
                        ) from None
                    yield number, text
        except OSError as error:
            raise self.error(f"can't be read ({error.strerror})") from None


class JsonLines(TextRows):
    """A .jsonl file: one JSON object a line."""

    def count_rows(self) -> int:
        with self.path.open("rb") as lines:
            return sum(1 for line in lines if line.strip())

    def rows(self) -> Iterator[tuple[str, Row]]:
        for number, line in self.lines():
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise self.error(
                    f"line {number} is not JSON ({first_line(error)}): {line[:40]!r}; write one "
                    "JSON object a line, in UTF-8"
                ) from None
            if not isinstance(row, dict):
                raise self.error(
                    f"line {number} is a {type(row).__name__}; write one JSON object a line, "
                    '{"text": "..."} or {"input_ids": [...]}'
                )
            yield f"line {number}", row


class CsvRows(TextRows):
    """A .csv file whose first line names the columns; all values are text, empty ones None."""

    def columns(self) -> list[str]:
        """The names in the first line.

        Raises:
            UnusableError: it names none, or one twice.
        """
        return self._header(csv.reader((line for _, line in self.lines()), strict=True))

    def _header(self, reader: Iterator[list[str]]) -> list[str]:
        header = next(reader, None)
        if not header or len(set(header)) < len(header):
            raise self.error(
                f"its first line must name the columns, each once, got {header}; write one, "
                "as in text or prompt,completion"
            )
        return header

    def rows(self) -> Iterator[tuple[str, Row]]:
        before = csv.field_size_limit(_LONGEST_FIELD)
        number = 1
        try:
            reader = csv.reader((line for _, line in self.lines()), strict=True)
            header = self._header(reader)
            number = reader.line_num + 1
            for values in reader:
                if values:
                    if len(values) != len(header):
                        raise self.error(
                            f"line {number} has {len(values)} fields, and the first line names "
                            f"{len(header)} columns; put text with commas or quotes into quotes"
                        )
                    yield (
                        f"line {number}",
                        {name: value or None for name, value in zip(header, values, strict=True)},
                    )
                number = reader.line_num + 1
        except csv.Error as error:
            raise self.error(
                f"line {number} is not CSV ({first_line(error)}); put text with commas, quotes or "
                'line ends into quotes, and write a quote in it twice: ""'
            ) from None
        finally:
            csv.field_size_limit(before)


class Paragraphs(TextRows):
    """A .txt file: documents lie between blank lines; no document begins or ends with one."""

    def columns(self) -> list[str]:
        """The only one."""
        return ["text"]

    def rows(self) -> Iterator[tuple[str, Row]]:
        paragraph: list[str] = []
        number = 0
        for line in _with_end(line for _, line in self.lines()):
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                number += 1
                yield f"document {number}", {"text": _text(paragraph)}
                paragraph = []


def _with_end(lines: Iterable[str]) -> Iterator[str]:
    yield from lines
    yield ""


def _text(lines: list[str]) -> str:
    return re.sub(r"\r\n?", "\n", "".join(lines)).strip("\n")


READERS: dict[str, type[CsvRows] | type[Paragraphs]] = {".csv": CsvRows, ".txt": Paragraphs}
"""Files that other libraries read by other rules: by lines, or with types guessed from values."""
