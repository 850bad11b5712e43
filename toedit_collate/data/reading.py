"""Reads what a user names: a file, a folder, a dataset on the hub, or the demo's text.

Commands read batches of rows (`open_data`), recipes get a `datasets` dataset (`load_rows`). Both
give the same rows.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import UnusableError, first_line
from .demo_text import DEMO, demo_rows
from .parsing import KINDS, OPEN, PARSERS, Row, kind_of, read_files

BATCH_SIZE = 64  # rows
_RULES = 2  # increase it when parsing changes, so that cached datasets are made again
_SPLIT = re.compile(r"\w[\w.-]*(\[[^\]]*\])?")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# How paths and addresses begin; patterns; and a name that is empty.
_PATH = re.compile(r"[./~\\:]|[A-Za-z]:[\\/]|.*[*?]|\w{2,}://|$")


@dataclass(frozen=True)
class Batch:
    """Some rows, and their names for messages."""

    rows: list[Row]
    names: list[str]


@dataclass(frozen=True)
class Data:
    """The rows of one source, read in batches: memory does not grow with the source.

    Attributes:
        name: as the user wrote it.
        option: that named it, for messages: "--data".
        read: returns all rows in order, each with its name for messages.
        dataset: of `datasets`, if the rows come from one.
    """

    name: str
    option: str
    read: Callable[[], Iterable[tuple[str, Row]]]
    dataset: Any = None

    def count_rows(self) -> int | None:
        """The number of rows; None for a stream. Reads, and so checks, files of text."""
        if self.dataset is None:
            return sum(1 for _ in self.read())
        return len(self.dataset) if hasattr(self.dataset, "select") else None

    def batches(self) -> Iterator[Batch]:
        """All rows, in order; an UnusableError names the row that cannot be read."""
        rows = iter(self.read())
        while some := list(islice(rows, BATCH_SIZE)):
            yield Batch([row for _, row in some], [name for name, _ in some])

    def features(self) -> Any:
        """The types of the columns, as `datasets.Features`."""
        if self.dataset is None:
            return infer_features(row for _, row in self.read())
        # A stream may know them only after reading.
        return (self.dataset.features or self.dataset._resolve_features().features).copy()

    def error(self, message: str) -> UnusableError:
        """An error about this source."""
        return UnusableError(f"{self.option} {self.name}: {message}".lstrip())


def open_data(source: str | Path, split: str | None = None, *, option: str = "--data") -> Data:
    """Open what a user names, see `parse_source`, to read it in batches.

    The split is one of a folder or a hub dataset; without it, the only one, or "train". `option`
    named the source, for messages.
    """
    name, config, own_split = parse_source(str(source), option or "the data")
    named = _Source(option, str(source), name, config, split or own_split)
    if split is not None and Path(name).is_file():
        raise named.error(f"--split {split}: a file has no splits; leave --split out")
    files = named.files.get(named.split, [])
    if named.kind in PARSERS and files:
        return Data(named.source, option, lambda: read_files(files, named.label))
    dataset = named.load(streaming=not named.files or bool(files))
    return Data(named.source, option, lambda: _numbered(dataset, named), dataset)


def load_rows(
    name: str, config: str | None = None, split: str = "train", *, streaming: bool = False,
    option: str = "",
) -> Any:  # fmt: skip
    """Load what a user names as a `datasets` dataset to train on: the rows of `open_data`.

    Name, configuration and split are those of `parse_source`. Messages get no keys with null.
    """
    return _Source(option, name, name, config, split).load(streaming)


def parse_source(text: str, what: str = "held_out") -> tuple[str, str | None, str]:
    """Name, configuration and split of what a user wrote.

    The text is "file", "file:split", "id", "id:config", or "id:config:split". A file may be a
    pattern with `*`, or a folder. A split may be a part, as in "train[:90%]". An existing path is
    never divided. Otherwise, the part after the last colon may be a split.

    Example:
        >>> parse_source("bio.jsonl:train[900:]")
        ('bio.jsonl', None, 'train[900:]')
        >>> parse_source("runs/10:30/bio.jsonl")
        ('runs/10:30/bio.jsonl', None, 'train')
        >>> parse_source("Salesforce/wikitext:wikitext-2-raw-v1:test")
        ('Salesforce/wikitext', 'wikitext-2-raw-v1', 'test')
    """
    # The brackets of a split may contain colons, too.
    parts = re.findall(r"(?:\[[^\]]*\]|[^:])+", text) or [text]
    head = text.removesuffix(f":{parts[-1]}")
    is_split = head != text and _SPLIT.fullmatch(parts[-1]) and not kind_of(parts[-1])
    if _exists(text):
        return text, None, "train"
    if _exists(head) or _looks_local(text):
        return (head, None, parts[-1]) if is_split else (text, None, "train")
    name, *rest = parts
    if len(rest) < 2:
        return name, *(rest or [None]), "train"
    if len(rest) == 2 and all(_SPLIT.fullmatch(part) for part in rest):
        return name, rest[0], rest[1]
    raise UnusableError(
        f"{what} has {text!r}; write file, file:split, hub_id, hub_id:config or hub_id:config:split"
    )


def is_local(name: str) -> bool:
    """Whether a name is of something on this machine, and is not looked up on the hub."""
    first = parse_source(name, "the data")[0]
    return first == DEMO or _exists(first) or _looks_local(first)


def may_be_on_hub(name: str) -> bool:
    """Whether a name could be of something on the hub, and does not look like a path."""
    return bool(_HUB_ID.fullmatch(name)) and not _PATH.match(name)


def _exists(name: str) -> bool:
    return bool(name) and (Path(name).exists() or bool(_glob(name)))


def _looks_local(text: str) -> bool:
    """Whether a name that does not exist looks like a path."""
    parts = re.split(r":(?![^\[]*\])", text)
    return any(map(kind_of, parts)) or bool(_PATH.match(text))


def _glob(name: str) -> list[str]:
    """The files that match a pattern; none if it is no pattern."""
    found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
    return [one for one in found if Path(one).is_file()]


@dataclass(frozen=True)
class _Source:
    """A parsed name, see `parse_source`, and how to load it."""

    option: str
    source: str
    name: str
    config: str | None
    split: str

    @property
    def label(self) -> str:
        """The beginning of errors."""
        return f"{self.option} {self.source}".lstrip()

    def error(self, message: str) -> UnusableError:
        return UnusableError(f"{self.label}: {message}")

    @property
    def is_saved(self) -> bool:
        """Whether it is a folder of `save_to_disk`."""
        names = ("state.json", "dataset_dict.json")
        return any((Path(self.name) / name).is_file() for name in names)

    @property
    def kind(self) -> str:
        """The kind of its files; "" for other datasets."""
        return kind_of(next(iter(self.files.values()))[0]) if self.files else ""

    @cached_property
    def files(self) -> dict[str, list[str]]:
        """The local data files of each split, all of one kind; none for other datasets."""
        path = Path(self.name)
        if self.name and path.is_dir():
            found = {} if self.is_saved else self._files_of_folder()
        else:
            files = [self.name] if self.name and path.exists() else _glob(self.name)
            if not files and re.match(r"\w{2,}://", self.name):
                raise self.error("addresses are not read; download the file, or name a hub dataset")
            if not files and (_looks_local(self.name) or not may_be_on_hub(self.name)):
                raise self.error("there is no such file or folder; check the path")
            if not all(Path(one).is_file() for one in files):  # a pipe would wait for a writer
                raise self.error("is neither a file nor a folder; name a regular file")
            found = {"train": files} if files else {}
        all_files = [one for some in found.values() for one in some]
        if found and ("" in (kinds := set(map(kind_of, all_files))) or len(kinds) > 1):
            seen = sorted({Path(one).suffix or "nothing" for one in all_files})
            raise self.error(
                f"its name ends in {' and '.join(map(repr, seen))}; give files of one kind of "
                f"{', '.join(KINDS)}, text perhaps compressed ({', '.join(OPEN)}), or a folder"
            )
        return found

    def _files_of_folder(self) -> dict[str, list[str]]:
        """The data files of a folder by split, as `datasets` finds them."""
        from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

        try:
            found: Any = DataFilesDict.from_patterns(get_data_patterns(self.name), self.name)
        except (EmptyDatasetError, FileNotFoundError):  # it finds none if a name has brackets
            found = {"train": [str(p) for p in sorted(Path(self.name).rglob("[!.]*.*"))]}
        files = {str(split): list(filter(kind_of, some)) for split, some in found.items()}
        if not any(files.values()):
            raise self.error("the folder holds no data files; check the path")
        return {split: some for split, some in files.items() if some}

    def load(self, streaming: bool) -> Any:
        """The dataset; see `load_rows`."""
        import datasets

        try:
            if self.name == DEMO and not Path(DEMO).exists():
                return datasets.Dataset.from_list(demo_rows(self.config, self.split))
            if self.is_saved:
                saved: Any = datasets.load_from_disk(self.name)
                return self._part({"train": saved} if hasattr(saved, "select") else dict(saved))
            if not self.files:
                return datasets.load_dataset(
                    self.name, self.config, split=self.split, streaming=streaming
                )
            if self.kind not in PARSERS:
                escaped = {n: list(map(glob.escape, some)) for n, some in self.files.items()}
                return datasets.load_dataset(
                    self.kind, data_files=escaped, split=self.split, streaming=streaming
                )
            named = [n for n in self.files if re.search(rf"\b{re.escape(n)}\b", self.split)]
            part = self._part({n: self._dataset(self.files[n]) for n in named or self.files})
            return part.to_iterable_dataset() if streaming else part
        except UnusableError:
            raise
        except Exception as error:  # of many kinds, by where the rows come from
            if isinstance(error.__cause__, UnusableError):  # from our own parsers
                raise error.__cause__ from None
            if self.files or Path(self.name).exists():
                what = f"can't be read as {self.kind or 'a dataset'}, split {self.split!r}"
            else:
                what = "there is no such file or folder; nor can it be loaded from the hub, "
                what += f"configuration {self.config!r}, split {self.split!r}"
            raise self.error(f"{what}: {first_line(error.__cause__ or error)}") from None

    def _part(self, whole: dict[str, Any]) -> Any:
        """A split, or a part of one, as in "train[:90%]"."""
        import datasets

        split = next(iter(whole)) if len(whole) == 1 and self.split == "train" else self.split
        lengths = {name: len(rows) for name, rows in whole.items()}
        try:
            parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
        except (ValueError, AssertionError) as error:
            raise self.error(
                f"no split {split!r} ({first_line(error)}); add --split, or :SPLIT, with one of "
                f"{', '.join(whole)}, or a part, as in {next(iter(whole))}[:90%]"
            ) from None
        rows = [whole[part.splitname].select(range(part.from_, part.to)) for part in parts]
        return datasets.concatenate_datasets(rows)

    def _dataset(self, files: list[str]) -> Any:
        """Files of text as a dataset in the cache of `datasets`; a changed file is read again."""
        import datasets

        features = infer_features(row for _, row in read_files(files, self.label))
        if not features:
            raise self.error("it holds no rows; check the path")
        as_json = [name for name, one in features.items() if isinstance(one, datasets.Json)]
        stats = [(one, Path(one).stat().st_mtime_ns, Path(one).stat().st_size) for one in files]
        known_by = hashlib.sha256(repr((stats, _RULES)).encode()).hexdigest()[:32]
        return datasets.Dataset.from_generator(
            _rows_of_files,
            features=features,
            fingerprint=known_by,
            gen_kwargs={"files": files, "label": self.label, "as_json": tuple(as_json)},
        )


def _rows_of_files(files: list[str], label: str, as_json: tuple[str, ...]) -> Iterator[Row]:
    for _, row in read_files(files, label):
        yield with_json(row, as_json)


def with_json(row: Row, columns: Iterable[str]) -> Row:
    """Encode columns of `datasets.Json`, whose own encoder rounds numbers to ten digits."""
    return row | {name: json.dumps(row[name]) for name in columns if row.get(name) is not None}


def _numbered(dataset: Any, source: _Source) -> Iterator[tuple[str, Row]]:
    """Rows with their names; images and the like are not decoded."""
    features: Any = dataset.features or {}
    decoded = {n: f for n, f in features.items() if "Json" in repr(f)}
    number = 0
    try:
        for table in dataset.with_format("arrow").iter(BATCH_SIZE):
            for row in table.to_pylist():
                if decoded:
                    some = {name: row[name] for name in decoded}
                    row |= type(features)(decoded).decode_example(some)
                yield f"row {number} (from 0)", row
                number += 1
    except UnusableError:
        raise
    except Exception as error:  # of many kinds, by where the rows come from
        raise source.error(f"can't be read after row {number} ({first_line(error)})") from None


def infer_features(rows: Iterable[Row]) -> Any:
    """The types of the columns of all rows, as `datasets.Features`; empty if there are no rows.

    Values that are neither of one plain type nor lists of whole numbers become `datasets.Json`,
    which keeps the keys of each dict, and their order.

    Example:
        >>> infer_features([{"n": 1, "input_ids": [5, 6]}, {"n": 2.5, "input_ids": []}])
        {'n': Value('float64'), 'input_ids': List(Value('int64'))}
    """
    import datasets

    seen: dict[str, set[Any]] = {}
    for row in rows:
        for name, value in row.items():
            is_ids = isinstance(value, list) and all(type(one) is int for one in value)
            is_long = type(value) is int and not -(2**63) <= value < 2**63
            seen.setdefault(name, set()).add("ids" if is_ids else list if is_long else type(value))
    plain = {str: "string", bool: "bool", int: "int64", float: "float64"}
    features = {}
    for name, types in seen.items():
        types -= {type(None), *([int] if float in types else [])}
        if len(types) == 1 and (only := next(iter(types))) in plain:
            features[name] = datasets.Value(plain[only])
        elif types == {"ids"}:
            features[name] = datasets.List(datasets.Value("int64"))
        else:
            features[name] = datasets.Json() if types else datasets.Value("null")
    return datasets.Features(features)
