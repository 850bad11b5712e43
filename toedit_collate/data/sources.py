"""Opens what a user names as data: a file, a folder of `save_to_disk`, a dataset of the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UnusableError, first_line
from .demo_model.source import DEMO
from .lines import READERS, JsonLines
from .loading import BUILDERS, load_rows, parse_source
from .rows import Data, ParquetRows, SavedRows, need_datasets

_READERS: dict[str, Callable[[Path, str], Data]] = {
    ".jsonl": JsonLines,
    ".parquet": ParquetRows,
    **READERS,
}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def open_data(source: str | Path, split: str | None = None, *, option: str = "--data") -> Data:
    """Open a data file, a folder of `save_to_disk`, or a dataset of the hub, which is streamed.

    The rows are those that `load_rows` gives a recipe, for whatever both are given.

    Args:
        source: path, several by *, path:split as in "a.jsonl:train[:90%]"; or hub id,
            hub_id:config or hub_id:config:split.
        split: of a folder with several, or of a hub dataset; None: the only one, or "train".
        option: that named it, for messages; "": none.

    Raises:
        UnusableError: there is no such thing, it can't be read, or `split` does not fit.

    Example:
        >>> open_data("talks.doc")
        Traceback (most recent call last):
        ...
        toedit_collate.errors.UnusableError: --data talks.doc: there is no such file or ...
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
        if path.suffix in _READERS:
            return _READERS[path.suffix](path, option)
        if path.suffix not in BUILDERS:
            raise Data(name, option).error(
                f"a name that ends in {path.suffix or 'nothing'!r}; give "
                f"{', '.join(_READERS)}, or a folder that save_to_disk wrote"
            )
    return _open_dataset(name, split, option)


def _open_folder(path: Path, split: str | None, option: str) -> Data:
    datasets = need_datasets()
    was_saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        if not was_saved:  # a folder of files
            return SavedRows(path, load_rows(str(path), split=split or "train"), option)
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # of many kinds, by what is in the folder
        raise Data(path, option).error(
            f"can't be loaded as a dataset ({first_line(error)}); give a folder that "
            "save_to_disk wrote, or one with files of one format"
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
    """Several files, a part of one, a dataset of the hub, or the one that is made on the spot."""
    missing = Data(name, option).error("there is no such file or folder; check the path")
    first = name.partition(":")[0]
    is_file = Path(first).suffix in BUILDERS
    if is_file and not ("*" in first or Path(first).is_file()):
        raise missing
    if not is_file and (name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(first)):
        raise missing
    its_name, config, its_split = parse_source(name, option or "the data")
    return _load(its_name, config, split or its_split, option, name, missing)


def _load(
    name: str, config: str | None, split: str, option: str, said: str, missing: UnusableError
) -> Data:
    need_datasets()
    is_file = Path(name).suffix in BUILDERS
    # Parts of files, and what is made on the spot, are whole datasets.
    streaming = name != DEMO and not (is_file and split != "train")
    try:
        rows: Any = load_rows(name, config, split, streaming=streaming)
    except UnusableError as error:
        if is_file:
            raise Data(said, option).error(str(error)) from None
        if name == DEMO:
            raise
        raise UnusableError(f"{missing}; nor could it be had from the hub: {error}") from None
    return SavedRows(said, rows, option)
