"""Datasets of the hub or of local files, whole, as `datasets` has them: what recipes train on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..demo_model.source import DEMO, demo_rows
from ..errors import UnusableError, first_line

BUILDERS = {
    ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"
}  # fmt: skip
_SPLIT = re.compile(r"[\w.-]+(\[[^\]]*\])?")


def load_rows(
    name: str, config: str | None = None, split: str = "train", *, streaming: bool = False
) -> Any:
    """Load a dataset from the hub or from a local file.

    Args:
        name: hub id; a .jsonl, .json, .parquet, .csv or .txt file (which is one document); a
            folder that `save_to_disk` wrote; or "toedit-demo".
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
        if path.suffix in BUILDERS and (path.is_file() or "*" in name):
            options = {"sample_by": "document"} if path.suffix == ".txt" else {}
            return datasets.load_dataset(
                BUILDERS[path.suffix], data_files=name, split=split, streaming=streaming, **options
            )
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(name)
            if isinstance(saved, datasets.Dataset) and split == "train":
                return saved
            return saved[split]
        if not path.exists() and (path.suffix in BUILDERS or name.startswith((".", "/"))):
            raise UnusableError(f"the dataset {name}: there is no such file; check the path")
        return datasets.load_dataset(name, config, split=split, streaming=streaming)
    except (OSError, KeyError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise UnusableError(
            f"the dataset {name!r} (configuration {config!r}, split {split!r}) can't be loaded: "
            f"{first_line(error)}; name a hub dataset, or a local .jsonl, .parquet, .csv or .txt "
            "file"
        ) from None


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
