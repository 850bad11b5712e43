"""Writes rows to a new file, or to a new folder of `save_to_disk`: all or nothing."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import UnusableError, first_line
from .parsing import KINDS, OPEN, Row
from .progress import no_bars_of_datasets
from .reading import Data, infer_features, with_json
from .revise import Reviser
from .tokens import PER_TOKEN

OUTPUT_HELP = (
    "a new .jsonl or .parquet file; or, with any other name, a new folder for "
    "datasets.load_from_disk"
)


def check_output(output: Path) -> None:
    """Check that rows can be written there.

    Raises:
        UnusableError: it exists already, or its name ends like another format.
    """
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
    """Write rows in the format of a name's ending.

    Args:
        data: source of the rows.
        reviser: that made them.
        rows: in order.
        target: to write to.
        ending: ".jsonl", ".parquet", or another for a folder of `save_to_disk`.
        bar: a progress bar.

    Raises:
        UnusableError: a row does not fit into such a file.
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

    first = next(rows, None)
    features = data.features()
    if first is not None:
        _adapt(features, first, reviser)
        rows = chain([first], rows)
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


def _adapt(features: Any, first: Row, reviser: Reviser) -> None:
    """Change the types of the columns to those that are written."""
    import datasets

    for name in reviser.stale:
        features.pop(name, None)
    for name, feature in infer_features([first]).items():
        features.setdefault(name, feature)
    for name in {*PER_TOKEN, *reviser.aligned_columns([first])} & set(features):
        if isinstance(features[name], datasets.List):
            features[name] = datasets.List(features[name].feature)  # of any length
