"""Edits that were made and not written yet."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ragged import Array
from .frames import STEP_COLUMNS, Frame


class PendingEdits:
    """Gathers edits for a frame."""

    def __init__(self) -> None:
        self._keys: list[Array] = []
        self._counts: list[Array] = []
        self._changes: list[Array] = []
        self._steps: list[dict[str, int]] = []
        self._num_documents = 0

    def __len__(self) -> int:
        return self._num_documents

    def add(self, keys: Array, counts: Array, changes: Array, step: int, **sums: int) -> None:
        """Add the edits of some documents; `sums`: tokens, scored, selected, changed."""
        self._keys.append(keys)
        self._counts.append(counts)
        self._changes.append(changes)
        self._num_documents += len(keys)
        new = {"documents": len(keys), **sums}
        if self._steps and self._steps[-1]["step"] == step:
            last = self._steps[-1]
            last.update({name: last[name] + value for name, value in new.items()})
        else:
            self._steps.append({"step": step, **new})

    def as_frame(self, info: dict[str, Any]) -> Frame:
        """All of them in one frame."""
        return Frame(
            info=info,
            keys=np.concatenate([np.zeros(0, np.uint64), *self._keys]),
            counts=np.concatenate([np.zeros(0, np.int64), *self._counts]),
            changes=np.concatenate([np.zeros((0, 3), np.int64), *self._changes]),
            steps={
                name: np.array([step[name] for step in self._steps], np.int64)
                for name in STEP_COLUMNS
            },
        )
