"""The edited dataset: rows as they were read, with their new tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...data import Batch, Data, Documents, Preparation, Row
from ...data.revise import Reviser
from ...data.writing import write_rows
from ...stores.journal import Texts
from ...stores.ragged import Array
from .edit import EditedRows


class Output:
    """Writes edited rows as `toedit journal export` does: columns follow the tokens.

    The column `text` is decoded from the new tokens.

    Args:
        data: where the rows come from.
        tokenizer: of the prior.
        prep: how rows become tokens.
    """

    def __init__(self, data: Data, tokenizer: Any, prep: Preparation) -> None:
        self._data = data
        self._reviser = Reviser(data, self._edit, tokenizer, prep, with_text=True)

    def write(self, edited: Iterator[EditedRows], target: Path, *, ending: str, bar: Any) -> None:
        """Write a dataset.

        Args:
            edited: the rows, in order.
            target: a new file or folder.
            ending: of its name: .jsonl, .parquet, or none for a folder of `save_to_disk`.
            bar: a progress bar.

        Raises:
            UnusableError: the rows do not fit into such a file.
        """
        rows = self._rows(edited)
        write_rows(self._data, self._reviser, rows, target, ending, bar)

    def _rows(self, edited: Iterator[EditedRows]) -> Iterator[Row]:
        for one in edited:
            self._next = one
            yield from self._reviser.revise(one.rows)

    def _edit(self, batch: Batch, documents: Documents) -> tuple[Texts, Array]:
        texts = documents.texts()
        texts.tokens[:] = self._next.tokens
        texts.removed[:] = self._next.removed
        return texts, np.ones(len(documents.keys), bool)
