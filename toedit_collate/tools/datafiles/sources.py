"""Opens what a user names as data: a file, a folder of `save_to_disk`, a dataset of the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..demo_model.source import DEMO
from ..errors import UnusableError, first_line
from .loading import BUILDERS, load_rows, parse_source
from .rows import (
    CsvRows,
    Data,
    JsonLines,
    Paragraphs,
    ParquetRows,
    SavedRows,
    need_datasets,
)

_READERS: dict[str, Callable[[Path, str], Data]] = {
    ".jsonl": JsonLines,
    ".parquet": ParquetRows,
    ".csv": CsvRows,
    ".txt": Paragraphs,
}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def open_data(source: str | Path, split: str | None = None, *, option: str = "--data") -> Data:
    """Open a data file, a folder of `save_to_disk`, or a dataset of the hub, which is streamed.

    Args:
        source: path, or hub id, hub_id:config or hub_id:config:split.
        split: of a folder with several, or of a hub dataset; None: the only one, or "train".
        option: that named it, for messages; "": none.

    Raises:
        UnusableError: there is no such thing, it can't be read, or `split` does not fit.

    Example:
        >>> open_data("talks.doc")
        Traceback (most recent call last):
        ...
        toedit_collate.tools.errors.UnusableError: --data talks.doc: there is no such file or ...
    """
    name, path = str(source), Path(source)
    if name.partition(":")[0] != DEMO and path.is_dir():
        return _open_folder(path, split, option)
    if path.exists():
        if split is not None:
            raise UnusableError(
                f"--split {split}: the file {path} has no splits; leave --split out"
            )
        if not path.is_file():  # a pipe would wait for a writer
            raise Data(name, option).error("is neither a file nor a folder; name a regular file")
        if path.suffix not in _READERS:
            raise Data(name, option).error(
                f"a name that ends in {path.suffix or 'nothing'!r}; give "
                f"{', '.join(_READERS)}, or a folder that save_to_disk wrote"
            )
        return _READERS[path.suffix](path, option)
    return _open_dataset(name, split, option)


def _open_folder(path: Path, split: str | None, option: str) -> Data:
    datasets = need_datasets()
    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # of many kinds, by what is in the folder
        raise Data(path, option).error(
            f"can't be loaded as a dataset ({first_line(error)}); give a folder that "
            "save_to_disk wrote, or one file"
        ) from None
    if isinstance(dataset, datasets.DatasetDict):
        if split is None and len(dataset) == 1:
            split = next(iter(dataset))
        if split not in dataset:
            seen = "it holds several splits" if split is None else f"no split {split!r}"
            raise Data(path, option).error(f"{seen}; add --split with one of {', '.join(dataset)}")
        dataset = dataset[split]
    elif split is not None:
        raise UnusableError(f"--split {split}: {path} has no splits; leave --split out")
    return SavedRows(path, dataset, option)


def _open_dataset(name: str, split: str | None, option: str) -> Data:
    """A dataset of the hub, or the one that is made on the spot."""
    missing = Data(name, option).error("there is no such file or folder; check the path")
    first = name.partition(":")[0]
    is_path = name.startswith((".", "/", "~")) or Path(first).suffix in BUILDERS
    if is_path or not _HUB_ID.fullmatch(first):
        raise missing
    hub_id, config, its_split = parse_source(name, option or "the data")
    need_datasets()
    try:
        rows: Any = load_rows(hub_id, config, split or its_split, streaming=first != DEMO)
    except UnusableError as error:
        if first == DEMO:
            raise
        raise UnusableError(f"{missing}; nor could it be had from the hub: {error}") from None
    return SavedRows(name, rows, option)
