"""Datasets of the hub or of local files, whole, as `datasets` has them: what recipes train on."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UnusableError, first_line
from .demo_model.source import DEMO, demo_rows
from .lines import READERS
from .rows import Row

BUILDERS = {
    ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"
}  # fmt: skip
_RULES = 1  # of our own readers: one more where they give other rows than before
_SPLIT = re.compile(r"[\w.-]+(\[[^\]]*\])?")


def load_rows(
    name: str, config: str | None = None, split: str = "train", *, streaming: bool = False
) -> Any:
    """Load a dataset from the hub or from local files: the rows that `open_data` gives.

    Args:
        name: hub id; a .jsonl, .json, .parquet, .csv (all values are text) or .txt file (documents
            between blank lines), or several by *; a folder that `save_to_disk` wrote; or
            "toedit-demo".
        config: of a hub dataset that has several.
        split: name, or a part as in "train[:90%]". A file has one split, "train"; what
            `save_to_disk` wrote has whole splits.
        streaming: read it while training.

    Returns:
        A `datasets.Dataset`, or an `IterableDataset`.

    Raises:
        UnusableError: it can't be loaded; says what was tried.
    """
    import datasets

    path = Path(name)
    try:
        if name == DEMO:
            return datasets.Dataset.from_list(demo_rows(config, split))
        if files := _own_files(path):
            return _load_own(files, split, streaming)
        if path.suffix in BUILDERS and (path.is_file() or "*" in name):
            return datasets.load_dataset(
                BUILDERS[path.suffix], data_files=name, split=split, streaming=streaming
            )
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(name)
            if isinstance(saved, datasets.Dataset) and split == "train":
                return saved
            return saved[split]
        if not path.exists() and (path.suffix in BUILDERS or name.startswith((".", "/"))):
            raise UnusableError(f"the dataset {name}: there is no such file; check the path")
        return datasets.load_dataset(name, config, split=split, streaming=streaming)
    except (OSError, KeyError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error.__cause__, UnusableError):  # from our own reader
            raise error.__cause__ from None
        raise UnusableError(
            f"the dataset {name!r} (configuration {config!r}, split {split!r}) can't be loaded: "
            f"{first_line(error)}; name a hub dataset, or a local .jsonl, .parquet, .csv or .txt "
            "file"
        ) from None


def _own_files(path: Path) -> list[Path]:
    """The .txt or .csv files that are meant: one, those that a pattern fits, or a folder's."""
    if path.is_dir():
        found = sorted(one for one in path.rglob("*") if one.is_file())
    elif "*" in path.name:
        found = [Path(one) for one in sorted(glob.glob(str(path), recursive=True))]
    else:
        found = [path] if path.is_file() else []
    suffixes = {one.suffix for one in found}
    return found if len(suffixes) == 1 and suffixes <= set(READERS) else []


def _load_own(files: list[Path], split: str, streaming: bool) -> Any:
    """What our reader of .txt or .csv gives, as a dataset."""
    import datasets

    reader = READERS[files[0].suffix]
    names = {name: None for file in files for name in reader(file, "").columns()}
    features = datasets.Features({name: datasets.Value("string") for name in names})
    # What was changed, or is read by other rules now, must not come from the cache of datasets.
    stats = [(str(file), file.stat()) for file in files]
    stamped = [(name, stat.st_mtime_ns, stat.st_size, _RULES) for name, stat in stats]
    if streaming:
        if split != "train":
            raise ValueError(f"a part of a file, {split!r}, can't be streamed")
        return datasets.IterableDataset.from_generator(
            _read_own, features=features, gen_kwargs={"files": stamped}
        )
    whole = datasets.Dataset.from_generator(
        _read_own, features=features, gen_kwargs={"files": stamped}
    )
    parts = datasets.ReadInstruction.from_spec(split).to_absolute({"train": len(whole)})
    return whole.select([row for part in parts for row in range(part.from_, part.to)])


def _read_own(files: list[tuple[str, int, int, int]]) -> Iterator[Row]:
    for name, *_ in files:
        path = Path(name)
        for _, row in READERS[path.suffix](path, "").rows():
            yield row


def parse_source(text: str, what: str = "held_out") -> tuple[str, str | None, str]:
    """Name, configuration and split of "file", "file:split", "id", "id:config", "id:config:split".

    Args:
        text: what a user wrote.
        what: names it in the error.

    Raises:
        UnusableError: it is none of these.

    Example:
        >>> parse_source("bio.jsonl:train[900:]")
        ('bio.jsonl', None, 'train[900:]')
        >>> parse_source("Salesforce/wikitext:wikitext-2-raw-v1:test")
        ('Salesforce/wikitext', 'wikitext-2-raw-v1', 'test')
    """
    # Colons stand within the brackets of a split, too.
    parts = re.findall(r"(?:\[[^\]]*\]|[^:])+", text) or [text]
    name, rest = parts[0], parts[1:]
    is_file = Path(name).suffix in BUILDERS or Path(name).exists()
    if not rest:
        return name, None, "train"
    if len(rest) == 1 and is_file:
        return name, None, rest[0]
    if len(rest) == 1:
        return name, rest[0], "train"
    if len(rest) == 2 and all(_SPLIT.fullmatch(part) for part in rest):
        return name, rest[0], rest[1]
    raise UnusableError(
        f"{what} has {text!r}; write file, file:split, hub_id, hub_id:config or hub_id:config:split"
    )
