"""The rows of a data file, a batch at a time: memory does not grow with the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UnusableError

Row = dict[str, Any]
BATCH_SIZE = 64  # rows


@dataclass(frozen=True)
class Batch:
    """Some rows, and the name of each for messages."""

    rows: list[Row]
    names: list[str]


class Data:
    """A data file: its rows, and the types of its columns.

    Attributes:
        path: as the user gave it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def count_rows(self) -> int:
        """How many rows there are."""
        raise NotImplementedError

    def batches(self) -> Iterator[Batch]:
        """All rows, in order."""
        raise NotImplementedError

    def features(self) -> Any:
        """The types of the columns, as `datasets.Features`."""
        raise NotImplementedError

    def error(self, message: str) -> UnusableError:
        """An error about this file."""
        return UnusableError(f"--data {self.path}: {message}")


def open_data(path: Path, split: str | None) -> Data:
    """Open a folder of `save_to_disk`, a .jsonl or a .parquet file.

    Raises:
        UnusableError: there is no such file, it is of another format, or `split` does not fit.
    """
    if not path.exists():
        raise UnusableError(f"--data {path}: there is no such file or folder; check the path")
    if path.is_dir():
        return _Folder(path, split)
    if split is not None:
        raise UnusableError(f"--split {split}: the file {path} has no splits; leave --split out")
    if path.suffix == ".jsonl":
        return _JsonLines(path)
    if path.suffix == ".parquet":
        return _Parquet(path)
    raise UnusableError(
        f"--data {path}: a name that ends in {path.suffix or 'nothing'!r}; give .jsonl, .parquet, "
        "or a folder that save_to_disk wrote"
    )


class _Folder(Data):
    def __init__(self, path: Path, split: str | None) -> None:
        super().__init__(path)
        datasets = need_datasets()
        try:
            dataset = datasets.load_from_disk(str(path))
        except Exception as error:  # of many kinds, by what is in the folder
            raise self.error(
                f"can't be loaded as a dataset ({str(error).splitlines()[0]}); give a folder that "
                "save_to_disk wrote, or one .jsonl or .parquet file"
            ) from None
        if isinstance(dataset, datasets.DatasetDict):
            if split is None and len(dataset) == 1:
                split = next(iter(dataset))
            if split not in dataset:
                seen = "it holds several splits" if split is None else f"no split {split!r}"
                raise self.error(f"{seen}; add --split with one of {', '.join(dataset)}")
            dataset = dataset[split]
        elif split is not None:
            raise UnusableError(f"--split {split}: {path} has no splits; leave --split out")
        self._dataset = dataset

    def count_rows(self) -> int:
        return len(self._dataset)

    def batches(self) -> Iterator[Batch]:
        number = 0
        # As Arrow: images and the like stay as they are stored.
        for table in self._dataset.with_format("arrow").iter(BATCH_SIZE):
            rows = table.to_pylist()
            yield Batch(rows, _numbered(number, len(rows)))
            number += len(rows)

    def features(self) -> Any:
        return self._dataset.features.copy()


class _Parquet(Data):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            import pyarrow.parquet as parquet  # type: ignore[import-untyped]
        except ImportError:
            raise UnusableError(
                'reading .parquet needs pyarrow; pip install "toedit_collate[journal]"'
            ) from None
        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise self.error(f"not a parquet file ({str(error).splitlines()[0]})") from None

    def count_rows(self) -> int:
        return self._file.metadata.num_rows

    def batches(self) -> Iterator[Batch]:
        number = 0
        try:
            for batch in self._file.iter_batches(BATCH_SIZE):
                rows = batch.to_pylist()
                yield Batch(rows, _numbered(number, len(rows)))
                number += len(rows)
        except (OSError, ValueError) as error:
            raise self.error(f"can't be read behind row {number} ({error})") from None

    def features(self) -> Any:
        return need_datasets().Features.from_arrow_schema(self._file.schema_arrow)


class _JsonLines(Data):
    def count_rows(self) -> int:
        with self.path.open("rb") as lines:
            return sum(1 for line in lines if line.strip())

    def batches(self) -> Iterator[Batch]:
        rows: list[Row] = []
        names: list[str] = []
        for number, row in self._lines():
            rows.append(row)
            names.append(f"line {number}")
            if len(rows) == BATCH_SIZE:
                yield Batch(rows, names)
                rows, names = [], []
        if rows:
            yield Batch(rows, names)

    def features(self) -> Any:
        """Of all lines: the first ones may lack a column, or have null in it."""
        import pyarrow as pa  # type: ignore[import-untyped]

        schema = pa.schema([])
        for batch in self.batches():
            try:
                fields = pa.schema(list(pa.array(batch.rows).type))
                schema = pa.unify_schemas([schema, fields], promote_options="permissive")
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise self.error(
                    f"a column is of several types up to {batch.names[-1]} ({error}), which a "
                    "dataset can't hold; write to a .jsonl file"
                ) from None
        return need_datasets().Features.from_arrow_schema(schema)

    def _lines(self) -> Iterator[tuple[int, Row]]:
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:  # not JSON, or not UTF-8
                    raise self.error(
                        f"line {number} is not JSON ({error}): {line[:40]!r}; write one JSON "
                        "object a line, in UTF-8"
                    ) from None
                if not isinstance(row, dict):
                    raise self.error(
                        f"line {number} is a {type(row).__name__}; write one JSON object a line, "
                        '{"input_ids": [...]}'
                    )
                yield number, row


def need_datasets() -> Any:
    """The module datasets.

    Raises:
        UnusableError: it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise UnusableError(
            "folders of save_to_disk, in --data or --output, need datasets; "
            'pip install "toedit_collate[recipes]", or use .jsonl files'
        ) from None
    return datasets


def _numbered(first: int, count: int) -> list[str]:
    return [f"row {number} (from 0)" for number in range(first, first + count)]
