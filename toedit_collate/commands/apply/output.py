"""The edited dataset: rows as they were read, with their new tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...data import Batch, Data, Documents, Row
from ...data.revise import Reviser
from ...data.writing import write_dataset, write_lines
from ...stores.journal.replay import Texts
from ...stores.ragged import Array
from .edit import EditedRows


class Output:
    """Writes edited rows as `toedit journal export` does: columns follow the tokens.

    The column `text` is decoded from the new tokens.

    Args:
        data: where the rows come from.
        tokenizer: of the prior.
        assistant_only: of chats, only the assistant's turns have labels.
        eos: end text by an end token.
    """

    def __init__(
        self, data: Data, tokenizer: Any, *, assistant_only: bool = False, eos: bool = True
    ) -> None:
        self._data = data
        self._reviser = Reviser(
            data, self._edit, tokenizer, with_text=True, assistant_only=assistant_only, eos=eos
        )

    def write(self, edited: Iterator[EditedRows], target: Path, *, lines: bool, bar: Any) -> None:
        """Write a dataset.

        Args:
            edited: the rows, in order.
            target: a new file or folder.
            lines: whether it is a file of JSON lines, or a folder of `save_to_disk`.
            bar: a progress bar.

        Raises:
            UnusableError: the rows do not fit into such a file.
        """
        rows = self._rows(edited)
        if lines:
            write_lines(self._data, rows, target)
        else:
            write_dataset(self._data, self._reviser, rows, target, bar)

    def _rows(self, edited: Iterator[EditedRows]) -> Iterator[Row]:
        for one in edited:
            self._next = one
            yield from self._reviser.revise(one.rows)

    def _edit(self, batch: Batch, documents: Documents) -> tuple[Texts, Array]:
        texts = documents.texts()
        texts.tokens[:] = self._next.tokens
        texts.removed[:] = self._next.removed
        return texts, np.ones(len(documents.keys), bool)
