"""Writing rows to a new file of JSON lines, or a new folder of `save_to_disk`: all or nothing."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UnusableError
from .revise import Reviser
from .rows import Data, Row, need_datasets
from .tokens import CHAT_COLUMNS, is_chat


def check_output(output: Path) -> None:
    """See that something new can be written there.

    Raises:
        UnusableError: something is there, or its name is that of another format.
    """
    if output.exists() or output.is_symlink():
        raise UnusableError(f"--output {output}: is there already; remove it, or name another")
    if output.suffix in (".parquet", ".json", ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zst"):
        raise UnusableError(
            f"--output {output}: a name that ends in {output.suffix!r}; write .jsonl, or the name "
            "of a folder for datasets.load_from_disk"
        )


def write_lines(data: Data, rows: Iterator[Row], target: Path) -> None:
    """Write a row to a line.

    Raises:
        UnusableError: JSON can't hold a value.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, datetime.date | datetime.time):
            return value.isoformat()
        raise data.error(
            f"a column holds {type(value).__name__}, for which JSON has no word; write to a folder"
        )

    with target.open("w", encoding="utf-8") as file:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False, default=plain)
            try:
                file.write(f"{line}\n")
            except UnicodeEncodeError:  # half of a surrogate pair
                file.write(f"{json.dumps(row, default=plain)}\n")


def write_dataset(
    data: Data, reviser: Reviser, rows: Iterator[Row], target: Path, bar: Any
) -> None:
    """Write a folder for `datasets.load_from_disk`.

    Raises:
        UnusableError: a row does not fit the types of its columns.
    """
    datasets = need_datasets()
    features = _features(datasets, data, reviser)
    cache = target.parent / "cache"
    had_bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    source = _Source(rows)
    try:
        dataset = datasets.Dataset.from_generator(source, features=features, cache_dir=str(cache))
        bar.set_postfix_str("copying to its folder")
        dataset.save_to_disk(str(target))
    except Exception as error:
        # datasets raises an error of its own from ours.
        if source.error is not None:
            raise source.error from None
        if isinstance(error, OSError):
            raise
        reason = error.__cause__ or error
        raise data.error(
            f"a column does not fit its type, {features} ({reason}); write to a .jsonl file"
        ) from None
    finally:
        if had_bars:
            datasets.enable_progress_bars()


class _Source:
    """Rows for `Dataset.from_generator`, which wants to hash where they come from."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self.error: UnusableError | None = None
        self._rows = rows

    def __call__(self) -> Iterator[Row]:
        try:
            yield from self._rows
        except UnusableError as error:
            self.error = error
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (uuid.uuid4().hex,)


def _features(datasets: Any, data: Data, reviser: Reviser) -> Any:
    """The types of the columns that are written, which may have lost tokens, and have text."""
    features = data.features()
    first = next(data.batches(), None)
    if first is not None:
        features.setdefault("input_ids", datasets.List(datasets.Value("int64")))
        rows = [row for row in first.rows if row.get("input_ids") is not None]
        for name in {"input_ids", "labels", "position_ids", *reviser.aligned_columns(rows)}:
            if isinstance(features.get(name), datasets.List):
                features[name] = datasets.List(features[name].feature)  # of any length
    features.pop("text", None)
    for column in CHAT_COLUMNS:
        values = [] if first is None else [row.get(column) for row in first.rows]
        if any(isinstance(value, str) or (value and is_chat(value)) for value in values):
            features.pop(column, None)
    if reviser.with_text:
        features["text"] = datasets.Value("string")
    return features
