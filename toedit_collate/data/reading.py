"""One reader for what a user names: a file, a folder, a dataset of the hub, or the demo's text.

Commands read rows a batch at a time (`open_data`), recipes get a `datasets` dataset (`load_rows`);
both read the same rows by the same rules. Files of text (.jsonl, .csv, .txt) are parsed here: the
readers of pyarrow and pandas turn a text like "2024-03-01" into a date, and "NA" into nothing, and
their errors name no line.
"""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from ..errors import UnusableError, first_line
from .demo_text import DEMO, demo_rows

Row = dict[str, Any]
BATCH_SIZE = 64  # rows
_RULES = 2  # of the readers below: one more where they give other rows than before
_SPLIT = re.compile(r"\w[\w.-]*(\[[^\]]*\])?")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MANY = 2**31 - 1  # characters in a field of a .csv; Python's own limit is a short document
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True)
class Batch:
    """Some rows, and the name of each for messages."""

    rows: list[Row]
    names: list[str]


@dataclass(frozen=True)
class Data:
    """The rows of one source, read a batch at a time: memory does not grow with the source.

    Attributes:
        name: as the user wrote it.
        option: the option that named it, for messages: "--data".
        read: returns all rows in order, each with its name for messages.
        dataset: the `datasets` dataset that the rows come from, if there is one.
        num_rows: how many rows there are, if that is known without reading them.
    """

    name: str
    option: str
    read: Callable[[], Iterable[tuple[str, Row]]]
    dataset: Any = None
    num_rows: int | None = None

    def count_rows(self) -> int | None:
        """The number of rows; None for a stream. A file of text is read, and checked, for it."""
        if self.num_rows is not None or self.dataset is not None:
            return self.num_rows
        return sum(1 for _ in self.read())

    def batches(self) -> Iterator[Batch]:
        """All rows, in order.

        Raises:
            UnusableError: a row can't be read; names it.
        """
        batch = Batch([], [])
        for name, row in self.read():
            batch.rows.append(row)
            batch.names.append(name)
            if len(batch.rows) == BATCH_SIZE:
                yield batch
                batch = Batch([], [])
        if batch.rows:
            yield batch

    def features(self) -> Any:
        """The types of the columns, as `datasets.Features`."""
        if self.dataset is None:
            return infer_features(row for _, row in self.read())
        found = self.dataset.features
        if found is None:  # of a stream, until it is read
            found = self.dataset._resolve_features().features
        return found.copy()

    def error(self, message: str) -> UnusableError:
        """An error about this source."""
        return UnusableError(f"{self.option} {self.name}: {message}".lstrip())


def open_data(source: str | Path, split: str | None = None, *, option: str = "--data") -> Data:
    """Open what a user names, to be read a batch at a time.

    Args:
        source: see `parse_source`.
        split: of a folder with several, or of a hub dataset; None: the only one, or "train".
        option: the option that named it, for messages; "": none.

    Raises:
        UnusableError: there is no such thing, it can't be read, or `split` does not fit.

    Example:
        >>> open_data("talks.doc")
        Traceback (most recent call last):
        ...
        toedit_collate.errors.UnusableError: --data talks.doc: there is no such file or ...
    """
    name, config, own_split = parse_source(str(source), option or "the data")
    its = _Source(option, str(source), name, config, split or own_split)
    if split is not None and Path(name).is_file():
        raise its.error(f"--split {split}: a file has no splits; leave --split out")
    files = _files_of(its)
    if its.split in files and _kind_of(files[its.split][0]) in PARSERS:
        return Data(its.said, option, lambda: read_files(map(str, files[its.split]), its.label))
    is_part = "[" in its.split or "+" in its.split
    dataset = _load(its, files, streaming=not (is_part and files))
    num_rows = len(dataset) if hasattr(dataset, "select") else _rows_of_parquet(files, its.split)
    return Data(its.said, option, lambda: _read_dataset(dataset, its), dataset, num_rows)


def load_rows(
    name: str, config: str | None = None, split: str = "train", *, streaming: bool = False,
    option: str = "",
) -> Any:  # fmt: skip
    """Load what a user names as a dataset, to train on: the rows that `open_data` gives.

    Args:
        name: path, hub id, or "toedit-demo"; see `parse_source`.
        config: of a hub dataset that has several.
        split: name, or a part as in "train[:90%]". A file has one split, "train".
        streaming: read it while training.
        option: the option that named it, for messages.

    Returns:
        A `datasets.Dataset`, or an `IterableDataset`. Messages, and other columns of dicts with
        differing keys, keep their keys: no null is filled in.

    Raises:
        UnusableError: it can't be loaded; says what was tried.
    """
    source = _Source(option, name, name, config, split)
    return _load(source, _files_of(source), streaming)


def parse_source(text: str, what: str = "held_out") -> tuple[str, str | None, str]:
    """Name, configuration and split of what a user wrote.

    A path may hold colons: whatever exists is a path, and what follows the last colon of a path
    is a split only if it looks like one.

    Args:
        text: "file", "file:split", "id", "id:config", or "id:config:split". A file may be several,
            by `*`, or a folder. A split may be a part, as in "train[:90%]".
        what: names it in the error.

    Raises:
        UnusableError: it is none of these.

    Example:
        >>> parse_source("bio.jsonl:train[900:]")
        ('bio.jsonl', None, 'train[900:]')
        >>> parse_source("runs/10:30/bio.jsonl")
        ('runs/10:30/bio.jsonl', None, 'train')
        >>> parse_source("Salesforce/wikitext:wikitext-2-raw-v1:test")
        ('Salesforce/wikitext', 'wikitext-2-raw-v1', 'test')
    """
    if _exists(text):
        return text, None, "train"
    # Colons stand within the brackets of a split, too.
    parts = re.findall(r"(?:\[[^\]]*\]|[^:])+", text) or [text]
    head, _, tail = text.rpartition(f":{parts[-1]}")
    if head and not tail and _exists(head):
        if not _SPLIT.fullmatch(parts[-1]):
            raise UnusableError(f"{what} has {text!r}: {parts[-1]!r} is no split")
        return head, None, parts[-1]
    if _looks_local(text):
        is_split = _SPLIT.fullmatch(parts[-1]) and not _kind_of(parts[-1])
        return (head, None, parts[-1]) if head and is_split else (text, None, "train")
    name, *rest = parts
    if len(rest) == 2 and all(_SPLIT.fullmatch(part) for part in rest):
        return name, rest[0], rest[1]
    if len(rest) < 2:
        return name, rest[0] if rest else None, "train"
    raise UnusableError(
        f"{what} has {text!r}; write file, file:split, hub_id, hub_id:config or hub_id:config:split"
    )


@dataclass(frozen=True)
class _Source:
    """What was named, and where: see `parse_source`."""

    option: str
    said: str
    name: str
    config: str | None
    split: str

    def error(self, message: str) -> UnusableError:
        return UnusableError(f"{self.option} {self.said}: {message}".lstrip())

    @property
    def label(self) -> str:
        """What errors of a file begin with."""
        return f"{self.option} {self.name}".lstrip()


def is_local(name: str) -> bool:
    """Whether a name is of something on this machine, and never looked up on the hub."""
    first = parse_source(name, "the data")[0]
    return first == DEMO or _exists(first) or _looks_local(first)


def _exists(name: str) -> bool:
    return Path(name).exists() or bool(_glob(name))


def _glob(name: str) -> list[Path]:
    """The files that a pattern fits; none if it is no pattern."""
    found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
    return [Path(one) for one in found if Path(one).is_file()]


def _looks_local(text: str) -> bool:
    """Whether something that does not exist was meant as a path."""
    ends = any(_kind_of(part) for part in re.split(r":(?![^\[]*\])", text))
    return ends or bool(re.match(r"[./~\\]|[A-Za-z]:[\\/]", text)) or bool(re.search(r"[*?]", text))


def _kind_of(path: str | Path) -> str:
    """How a file is read, by its ending in any case: a key of `PARSERS`, or "parquet"; or ""."""
    endings = [one.lower() for one in Path(path).suffixes[-2:]]
    packed = bool(endings) and endings[-1] in _OPEN
    kind = _KINDS.get(endings[-1 - packed], "") if len(endings) > packed else ""
    return kind if not packed or kind in PARSERS else ""


def _files_of(source: _Source) -> dict[str, list[Path]]:
    """The local data files of each split; none for a dataset that is no files.

    Raises:
        UnusableError: there is no such file, it is of no known kind, or files are of several.
    """
    path = Path(source.name)
    if path.is_dir():
        return {} if _is_saved(path) else _files_of_folder(source, path)
    found = [path] if path.exists() else _glob(source.name)
    if not found and (_looks_local(source.name) or not _HUB_ID.fullmatch(source.name)):
        raise source.error("there is no such file or folder; check the path")
    if not all(one.is_file() for one in found):  # a pipe would wait for a writer
        raise source.error("is neither a file nor a folder; name a regular file")
    kinds = {_kind_of(one) for one in found}
    if "" in kinds or len(kinds) > 1:
        seen = sorted({one.suffix or "nothing" for one in found})
        raise source.error(
            f"a name that ends in {' and '.join(map(repr, seen))}; give files of one kind of "
            f"{', '.join(_KINDS)}, compressed ({', '.join(_OPEN)}) or not, or a folder that "
            "save_to_disk wrote"
        )
    return {"train": found} if found else {}


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _files_of_folder(source: _Source, path: Path) -> dict[str, list[Path]]:
    """The files of a folder by split, as `datasets` finds them; none if it must read them."""
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    try:
        patterns = get_data_patterns(str(path))
        found: Any = DataFilesDict.from_patterns(patterns, base_path=str(path))
    except (EmptyDatasetError, FileNotFoundError):  # it knows no folder with brackets in its name
        visible = (p for p in sorted(path.rglob("*")) if not p.name.startswith("."))
        found = {"train": [one for one in visible if one.is_file()]}
    files = {
        str(split): [Path(one) for one in names if _kind_of(one)] for split, names in found.items()
    }
    if not any(found.values()):
        raise source.error("the folder holds no data files; check the path")
    counts = Counter(_kind_of(one) for names in files.values() for one in names)
    order = list(dict.fromkeys(_KINDS.values()))
    kind = max(counts, key=lambda one: (counts[one], -order.index(one)), default="")
    of_kind = {name: [f for f in some if _kind_of(f) == kind] for name, some in files.items()}
    return {name: some for name, some in of_kind.items() if some}


def _load(source: _Source, files: dict[str, list[Path]], streaming: bool) -> Any:
    """The dataset that a source is."""
    import datasets

    path = Path(source.name)
    try:
        if source.name == DEMO and not path.exists():
            return datasets.Dataset.from_list(demo_rows(source.config, source.split))
        if _is_saved(path):
            saved: Any = datasets.load_from_disk(source.name)
            whole = {"train": saved} if isinstance(saved, datasets.Dataset) else dict(saved)
            only = next(iter(whole))
            is_only = len(whole) == 1 and source.split == "train"
            return _part(source, whole, only if is_only else source.split)
        if not files:
            return datasets.load_dataset(
                source.name, source.config, split=source.split, streaming=streaming
            )
        if (kind := _kind_of(next(iter(files.values()))[0])) not in PARSERS:
            escaped = {name: [glob.escape(str(f)) for f in some] for name, some in files.items()}
            return datasets.load_dataset(
                kind, data_files=escaped, split=source.split, streaming=streaming
            )
        if streaming and source.split in files:
            return datasets.IterableDataset.from_generator(
                _stamped_rows, gen_kwargs=_stamped(source, files[source.split])
            )
        named = {
            one: files[one] for one in files if re.search(rf"\b{re.escape(one)}\b", source.split)
        }
        whole = {name: _as_dataset(source, some) for name, some in (named or files).items()}
        part = _part(source, whole, source.split)
        return part.to_iterable_dataset() if streaming else part
    except UnusableError:
        raise
    except Exception as error:  # of many kinds, by where the rows come from
        if isinstance(error.__cause__, UnusableError):  # from our own reader
            raise error.__cause__ from None
        if files or path.exists():
            kind = _kind_of(next(iter(files.values()))[0]) if files else "a dataset"
            raise source.error(
                f"can't be read as {kind} (split {source.split!r}): {first_line(error)}"
            ) from None
        raise source.error(
            f"there is no such file or folder; nor can it be loaded from the hub (configuration "
            f"{source.config!r}, split {source.split!r}): {first_line(error)}"
        ) from None


def _part(source: _Source, whole: dict[str, Any], split: str) -> Any:
    """A split, or a part of one, as in "train[:90%]", of some datasets."""
    import datasets

    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(
            {name: len(rows) for name, rows in whole.items()}
        )
    except (ValueError, AssertionError) as error:
        raise source.error(
            f"no split {split!r} ({first_line(error)}); add --split, or :SPLIT, with one of "
            f"{', '.join(whole)}, or a part, as in {next(iter(whole), 'train')}[:90%]"
        ) from None
    rows = [whole[part.splitname].select(range(part.from_, part.to)) for part in parts]
    return rows[0] if len(rows) == 1 else datasets.concatenate_datasets(rows)


def _as_dataset(source: _Source, files: list[Path]) -> Any:
    """Files of text as a dataset, which `datasets` keeps in its cache.

    Raises:
        UnusableError: they hold no rows, or a line can't be read.
    """
    import datasets

    features = infer_features(row for _, row in read_files(map(str, files), source.label))
    if not features:
        raise source.error("it holds no rows; check the path")
    return datasets.Dataset.from_generator(
        _stamped_rows, features=features, gen_kwargs=_stamped(source, files)
    )


def _stamped(source: _Source, files: list[Path]) -> dict[str, Any]:
    """Arguments of `_stamped_rows`: what has changed must not come from the cache of datasets."""
    stats = [(one.stat().st_mtime_ns, one.stat().st_size, _RULES) for one in files]
    return {"files": [*zip(map(str, files), stats, strict=True)], "label": source.label}


def _stamped_rows(files: list[tuple[str, Any]], label: str) -> Iterator[Row]:
    for _, row in read_files([name for name, _ in files], label):
        yield row


def _read_dataset(dataset: Any, source: _Source) -> Iterator[tuple[str, Row]]:
    """Rows with their numbers; images and the like stay as they are stored."""
    number = 0
    features: Any = dataset.features or {}
    decoded = {n: f for n, f in features.items() if "Json" in repr(f)}
    decode = type(features)(decoded).decode_example if decoded else None
    try:
        for table in dataset.with_format("arrow").iter(BATCH_SIZE):
            for row in table.to_pylist():
                if decode is not None:
                    row.update(decode({name: row[name] for name in decoded}))
                yield f"row {number} (from 0)", row
                number += 1
    except UnusableError:
        raise
    except Exception as error:  # of many kinds, by where the rows come from
        raise source.error(f"can't be read after row {number} ({first_line(error)})") from None


def _rows_of_parquet(files: dict[str, list[Path]], split: str) -> int | None:
    """How many rows .parquet files have; None for other sources, and for compressed files."""
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    some = files.get(split, [])
    if not some or _kind_of(some[0]) != "parquet":
        return None
    return sum(parquet.read_metadata(one.absolute()).num_rows for one in some)


def infer_features(rows: Iterable[Row]) -> Any:
    """The types of the columns of all rows, as `datasets.Features`; empty if there are no rows.

    Dicts whose keys or types differ become `datasets.Json`, which keeps each as it is.

    Example:
        >>> infer_features([{"n": 1}, {"n": 2.5, "tags": ["a"]}])
        {'n': Value('float64'), 'tags': List(Value('string'))}
    """
    import datasets

    kinds: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            kinds[name] = _merged(kinds.get(name), _kind_of_value(value))
    return datasets.Features({name: _feature(kind) for name, kind in kinds.items()})


_JSON = "json"
_TYPES = {str: "string", bool: "bool", int: "int64", float: "float64", None: "null"}


def _kind_of_value(value: Any) -> Any:
    """A type of `_TYPES`, a list of one kind, a dict of kinds, or `_JSON`."""
    if isinstance(value, dict):
        kinds = {name: _kind_of_value(one) for name, one in value.items()}
        return kinds if kinds and not _has_json(kinds) else _JSON
    if isinstance(value, list):
        if len(types := set(map(type, value))) == 1 and types <= set(_TYPES):
            return [types.pop()]
        kind = None
        for one in value:
            kind = _merged(kind, _kind_of_value(one))
        return [kind]
    return None if value is None else type(value)


def _merged(a: Any, b: Any) -> Any:
    if a is None or a == b:
        return b
    if b is None:
        return a
    if isinstance(a, list) and isinstance(b, list):
        return [_merged(a[0], b[0])]
    if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
        both = {name: _merged(a[name], b[name]) for name in a}
        return _JSON if _has_json(both) else both
    return float if [a, b] in ([int, float], [float, int]) else _JSON


def _has_json(kind: Any) -> bool:
    parts = kind.values() if isinstance(kind, dict) else kind if isinstance(kind, list) else ()
    return kind == _JSON or any(_has_json(part) for part in parts)


def _feature(kind: Any) -> Any:
    import datasets

    if isinstance(kind, list):
        return datasets.List(_feature(kind[0]))
    if isinstance(kind, dict):
        return {name: _feature(one) for name, one in kind.items()}
    return datasets.Json() if kind == _JSON else datasets.Value(_TYPES[kind])


def read_files(files: Iterable[str], label: str) -> Iterator[tuple[str, Row]]:
    """All rows of files of text, each with its name: "line 3".

    Args:
        files: of a kind in `PARSERS`, perhaps compressed.
        label: what errors begin with: the option, and what the user named by it.

    Raises:
        UnusableError: a file or a line can't be read; names it.
    """
    for file in files:
        where = label if label.endswith(file) else f"{label}: {file}"
        named = "" if label.endswith(file) else f" of {file}"
        number = 0
        try:
            with _OPEN.get(Path(file).suffix.lower(), open)(file, "rb") as opened:
                for name, row in PARSERS[_kind_of(file)](_lines(opened)):
                    number += 1
                    yield name + named, row
        except _DAMAGED as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UnusableError(f"{where}: can't be read after row {number} ({reason})") from None
        except ValueError as error:
            raise UnusableError(f"{where}: {error}") from None


def _lines(file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """The lines of UTF-8 text with their ends, and their numbers from 1."""
    for number, line in enumerate(file, 1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"line {number} can't be read ({first_line(error)}): {line[:40]!r}; the file must "
                "be UTF-8"
            ) from None


def _parse_json(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[str, Row]]:
    """A JSON object on each line; or all in one array or one object over several lines."""
    first = True
    for number, line in lines:
        if not line.strip():
            continue
        if first and _is_begin(line):
            yield from _parse_whole_json(number, line + "".join(line for _, line in lines))
            return
        first = False
        yield f"line {number}", _as_row(_parse(line, f"line {number}"), f"line {number}", line)


def _is_begin(line: str) -> bool:
    """Whether a line begins an array, or an object that goes on in the next line."""
    return line.lstrip().startswith("[") or line.strip() == "{"


def _parse_whole_json(number: int, text: str) -> Iterator[tuple[str, Row]]:
    found = _parse(text, f"line {number}")
    for place, one in enumerate(found if isinstance(found, list) else [found]):
        yield f"item {place} (from 0)", _as_row(one, f"item {place} (from 0)", text)


def _parse(text: str, name: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        if isinstance(error, (json.JSONDecodeError, RecursionError)):
            raise ValueError(
                f"{name} is not JSON ({first_line(error)}): {text[:40]!r}; write one JSON object a "
                "line, in UTF-8; a file that was cut short ends like that, too"
            ) from None
        raise ValueError(f"{name} {error}") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has the key {twice!r} twice in one object; remove one of them")
    return row


def _as_row(found: Any, name: str, text: str) -> Row:
    if not isinstance(found, dict):
        raise ValueError(
            f"{name} is a {type(found).__name__}; write one JSON object a line, "
            '{"text": "..."} or {"input_ids": [...]}'
        )
    if "\\ud" in text.lower():  # JSON can write half of a letter: "\ud800"
        for column, value in found.items():
            check_text(json.dumps(value, ensure_ascii=False), f"{column} of {name}")
    return found


def check_text(text: Any, name: str) -> None:
    """See that a value from outside is text: what every text goes through before it is tokenized.

    Args:
        text: any value; one that is no `str` is never turned into one.
        name: names it in the error: "text of line 3".

    Raises:
        ValueError: it is null, bytes, a number, or has half of a surrogate pair.

    Example:
        >>> check_text(None, "text of row 3")
        Traceback (most recent call last):
        ...
        ValueError: text of row 3 is None, which is no text (NoneType); remove the row, or ...
    """
    if not isinstance(text, str):
        raise ValueError(
            f"{name} is {str(text)[:40]}, which is no text ({type(text).__name__}); remove the "
            "row, or convert the value"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has half of a surrogate pair, {error.object[error.start]!a}, which is no "
            "text; remove it"
        ) from None


def _parse_csv(lines: Iterator[tuple[int, str]], delimiter: str = ",") -> Iterator[tuple[str, Row]]:
    """Rows of values, all of them text; the first line names the columns."""
    before = csv.field_size_limit(_MANY)
    number = 1
    try:
        reader = csv.reader((line for _, line in lines), strict=True, delimiter=delimiter)
        header = next(reader, None)
        if header is None:
            return
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
    finally:
        csv.field_size_limit(before)


def _parse_tsv(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[str, Row]]:
    return _parse_csv(lines, "\t")


def _parse_text(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[str, Row]]:
    """Documents between blank lines; none begins or ends with a line end."""
    paragraph: list[str] = []
    number = 0
    for line in chain((line for _, line in lines), [""]):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            number += 1
            yield f"document {number}", {"text": "".join(paragraph).strip("\r\n")}
            paragraph = []


PARSERS: dict[str, Callable[[Iterator[tuple[int, str]]], Iterator[tuple[str, Row]]]] = {
    "json": _parse_json, "csv": _parse_csv, "tsv": _parse_tsv, "text": _parse_text
}  # fmt: skip
_KINDS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".txt": "text",
}  # fmt: skip


def _open_zst(file: str, mode: str) -> Any:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(file, compression="zstd"))


_OPEN: dict[str, Callable[[str, Any], Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst
}  # fmt: skip
