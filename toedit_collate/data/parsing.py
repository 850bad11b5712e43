"""Reads rows from files of text: JSON, CSV and plain text, compressed or not.

The readers of pyarrow and pandas turn texts like "2024-03-01" into dates and "NA" into null, and
their errors name no line. These readers keep every text.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from ..errors import UnusableError, first_line

Row = dict[str, Any]
Lines = Iterator[tuple[int, str]]
_LONGEST_FIELD = 2**31 - 1  # of a .csv; Python's own limit, 128 KiB, is a short document
KINDS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".txt": "text",
}  # fmt: skip


def kind_of(path: str | Path) -> str:
    """How to read a file, by its ending: a value of `KINDS`; "" if it is unknown."""
    path = Path(path)
    is_compressed = path.suffix.lower() in OPEN
    kind = KINDS.get((path.with_suffix("") if is_compressed else path).suffix.lower(), "")
    return "" if is_compressed and kind not in PARSERS else kind


def read_files(files: Iterable[str], label: str) -> Iterator[tuple[str, Row]]:
    """All rows of files of kinds in `PARSERS`, each with its name for messages: "line 3".

    `label`, an option and its value, begins errors, which name the file and the line.
    """
    for file in files:
        is_only = label.endswith(file)
        where, of_file = (label, "") if is_only else (f"{label}: {file}", f" of {file}")
        number = 0
        try:
            with OPEN.get(Path(file).suffix.lower(), open)(file, "rb") as opened:
                for name, row in PARSERS[kind_of(file)](_lines(opened)):
                    number += 1
                    yield name + of_file, row
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UnusableError(f"{where}: can't be read after row {number} ({reason})") from None
        except ValueError as error:
            raise UnusableError(f"{where}: {error}") from None


def check_text(text: Any, name: str) -> None:
    """Raise a ValueError if a value that will be tokenized is no text; `name` is for the error."""
    if not isinstance(text, str):
        raise ValueError(
            f"{name} is {str(text)[:40]}, which is not text ({type(text).__name__}); remove the "
            "row, or convert the value"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a letter: "\ud800"
        raise ValueError(
            f"{name} has half of a surrogate pair, {error.object[error.start]!a}, which is no "
            "text; remove it"
        ) from None


def _lines(file: IO[bytes]) -> Lines:
    """Numbers from 1, and lines of UTF-8 text with their line ends."""
    for number, line in enumerate(file, 1):
        if number == 1 and len(line) > 1 and not (any(line[::2]) and any(line[1::2])):
            raise ValueError(f"line 1 seems to be UTF-16: {line[:40]!r}; the file must be UTF-8")
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"line {number} can't be read ({first_line(error)}): {line[:40]!r}; the file must "
                "be UTF-8"
            ) from None


def _parse_json(lines: Lines) -> Iterator[tuple[str, Row]]:
    """A JSON object on each line; or an array of objects; or one object on several lines."""
    is_first = True
    for number, line in lines:
        name = f"line {number}"
        if is_first and (line.lstrip().startswith("[") or line.strip() == "{"):
            text = line + "".join(rest for _, rest in lines)
            found = _load_json(text, name)
            may_have_halves = _may_have_halves(text)  # once: a text may have many items
            for place, row in enumerate(found if isinstance(found, list) else [found]):
                name = f"item {place} (from 0)"
                yield name, _checked(row, name, may_have_halves)
        elif line.strip():
            is_first = False
            yield name, _checked(_load_json(line, name), name, _may_have_halves(line))


def _load_json(text: str, name: str) -> Any:
    def without_repeats(pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise KeyError(f"{name} has the key {twice!r} twice in one object; remove one of them")
        return row

    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{name} is not JSON ({first_line(error)}): {text[:40]!r}; write one JSON object a "
            "line, in UTF-8; a file that was cut short ends like that, too"
        ) from None


def _may_have_halves(text: str) -> bool:
    """Whether JSON has escapes of a letter in two halves, or of one half of it."""
    return "\\ud" in text.lower()


def _checked(row: Any, name: str, may_have_halves: bool) -> Row:
    if not isinstance(row, dict):
        raise ValueError(
            f"{name} is a {type(row).__name__}; write one JSON object a line, "
            '{"text": "..."} or {"input_ids": [...]}'
        )
    if may_have_halves:
        for column, value in row.items():
            shown = column if column.isprintable() else repr(column)
            check_text(json.dumps({column: value}, ensure_ascii=False), f"{shown} of {name}")
    return row


def _parse_csv(lines: Lines, delimiter: str = ",") -> Iterator[tuple[str, Row]]:
    """Rows of texts; the first line names the columns."""
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader((line for _, line in lines), strict=True, delimiter=delimiter)
    number = 1
    try:
        header = next(reader, ["text"])
        if not header or len(set(header)) < len(header):
            raise ValueError(
                f"its first line must name the columns, each once, got {header}; write one, as in "
                "text or prompt,completion"
            )
        number = reader.line_num + 1
        for values in reader:
            if values and len(values) != len(header):
                raise ValueError(
                    f"line {number} has {len(values)} fields, and the first line names "
                    f"{len(header)} columns; put text with commas or quotes into quotes"
                )
            if values:
                yield f"line {number}", dict(zip(header, values, strict=True))
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"line {number} is not CSV ({first_line(error)}); put text with commas, quotes or "
            'line ends into quotes, and write a quote in it twice: ""'
        ) from None


def _parse_text(lines: Lines) -> Iterator[tuple[str, Row]]:
    """Documents between blank lines, without line ends around them."""
    document: list[str] = []
    number = 0
    for line in chain((line for _, line in lines), [""]):
        if line.strip():
            document.append(line)
        elif document:
            number += 1
            yield f"document {number}", {"text": "".join(document).strip("\r\n")}
            document = []


def _open_zst(file: str, mode: str) -> Any:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(file, compression="zstd"))


PARSERS: dict[str, Callable[[Lines], Iterator[tuple[str, Row]]]] = {
    "json": _parse_json,
    "csv": _parse_csv,
    "tsv": lambda lines: _parse_csv(lines, "\t"),
    "text": _parse_text,
}
OPEN: dict[str, Callable[[str, Any], Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst
}  # fmt: skip
