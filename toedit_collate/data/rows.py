"""The rows of a data file, a batch at a time: memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UnusableError, first_line

Row = dict[str, Any]
BATCH_SIZE = 64  # rows


@dataclass(frozen=True)
class Batch:
    """Some rows, and the name of each for messages."""

    rows: list[Row]
    names: list[str]


class Data:
    """The rows of a data file, a folder or a hub dataset, and the types of its columns.

    Attributes:
        name: as the user gave it.
        option: that named it, for messages.
    """

    def __init__(self, name: str | Path, option: str = "--data") -> None:
        self.name = str(name)
        self.option = option

    def count_rows(self) -> int | None:
        """How many rows there are; None: only reading them tells."""
        raise NotImplementedError

    def batches(self) -> Iterator[Batch]:
        """All rows, in order.

        Raises:
            UnusableError: a row can't be read; names it.
        """
        raise NotImplementedError

    def features(self) -> Any:
        """The types of the columns, as `datasets.Features`."""
        raise NotImplementedError

    def error(self, message: str) -> UnusableError:
        """An error about this file."""
        return UnusableError(f"{self.option} {self.name}: {message}".lstrip())


class SavedRows(Data):
    """A `datasets.Dataset`, or an `IterableDataset`, which is read as it comes."""

    def __init__(self, name: str | Path, dataset: Any, option: str = "--data") -> None:
        super().__init__(name, option)
        self._dataset = dataset

    def count_rows(self) -> int | None:
        return len(self._dataset) if hasattr(self._dataset, "select") else None

    def batches(self) -> Iterator[Batch]:
        number = 0
        try:
            # As Arrow: images and the like stay as they are stored.
            for table in self._dataset.with_format("arrow").iter(BATCH_SIZE):
                rows = table.to_pylist()
                yield Batch(rows, _numbered(number, len(rows)))
                number += len(rows)
        except UnusableError:
            raise
        except Exception as error:  # of many kinds, by where the rows come from
            raise self.error(f"can't be read behind row {number} ({first_line(error)})") from None

    def features(self) -> Any:
        found = self._dataset.features
        if found is None:  # of a stream, until it is read
            found = self._dataset._resolve_features().features
        return found.copy()


class ParquetRows(Data):
    """A .parquet file."""

    def __init__(self, path: Path, option: str = "--data") -> None:
        super().__init__(path, option)
        try:
            import pyarrow.parquet as parquet  # type: ignore[import-untyped]
        except ImportError:
            raise UnusableError(
                'reading .parquet needs pyarrow; pip install "toedit_collate[recipes]"'
            ) from None
        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise self.error(f"not a parquet file ({first_line(error)})") from None

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
            raise self.error(f"can't be read behind row {number} ({first_line(error)})") from None

    def features(self) -> Any:
        return need_datasets().Features.from_arrow_schema(self._file.schema_arrow)


def need_datasets() -> Any:
    """The module datasets.

    Raises:
        UnusableError: it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise UnusableError(
            "hub datasets and folders of save_to_disk, in --data or --output, need datasets; "
            'pip install "toedit_collate[recipes]", or use .jsonl files'
        ) from None
    return datasets


def _numbered(first: int, count: int) -> list[str]:
    return [f"row {number} (from 0)" for number in range(first, first + count)]
