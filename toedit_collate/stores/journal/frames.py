"""Frame: the edits in one segment of a journal.

| array | one number for each | |
| --- | --- | --- |
| `keys` | document that was edited | 64 bits of its content |
| `counts` | document | number of its changes |
| `position`, `old`, `new` | change | `new` is the token + 1; 0: the token was removed |
| `step`, `documents`, ... | batch, in the same order | see `STEP_COLUMNS` |

All arrays but the keys are compressed. What the whole frame has in common (generation, prior,
policy, run) is `info`, one of the segment's facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..ragged import Array, narrowed
from ..segments import DamagedFileError, read_segment, write_segment

KIND = "toedit journal, 2"
STEP_COLUMNS = ("step", "documents", "tokens", "scored", "selected", "changed")
_DEFLATED = ("counts", "position", "old", "new", *STEP_COLUMNS)
_INFO = {"generation", "run", "attempt", "resumed_at"}


@dataclass(frozen=True)
class Frame:
    """The edits of n documents, and what they were made with.

    Attributes:
        info: `generation` (0: it only notes that a run was resumed), `prior`, `policy`, `run`,
            `attempt`, `resumed_at`.
        keys: (n,) uint64, of the documents' content.
        counts: (n,) int64, number of changes of each document.
        changes: (c, 3) int64, position, old and new token (-1: removed), one document after
            another.
        steps: name -> (s,) int64, see `STEP_COLUMNS`; the sum of `documents` is n.
    """

    info: dict[str, Any]
    keys: Array
    counts: Array
    changes: Array
    steps: dict[str, Array]

    def before(self, step: float) -> Frame:
        """The edits from before a step of training."""
        kept = self.steps["step"] < step
        if kept.all():
            return self
        documents = np.repeat(kept, self.steps["documents"])
        return Frame(
            self.info,
            self.keys[documents],
            self.counts[documents],
            self.changes[np.repeat(documents, self.counts)],
            {name: column[kept] for name, column in self.steps.items()},
        )

    @classmethod
    def joined(cls, frames: Sequence[Frame]) -> Frame:
        """Several frames with the same `info` as one."""
        return cls(
            frames[0].info,
            np.concatenate([frame.keys for frame in frames]),
            np.concatenate([frame.counts for frame in frames]),
            np.concatenate([frame.changes for frame in frames]),
            {n: np.concatenate([frame.steps[n] for frame in frames]) for n in STEP_COLUMNS},
        )

    @classmethod
    def empty(cls, info: dict[str, Any]) -> Frame:
        """A frame without edits."""
        none = np.zeros(0, np.int64)
        steps = dict.fromkeys(STEP_COLUMNS, none)
        return cls(info, none.astype(np.uint64), none, none.reshape(0, 3), steps)


def write_frame(path: Path, frame: Frame) -> None:
    """Write a segment; a ValueError if a token is out of range."""
    position, old, new = frame.changes.T
    if len(new) and new.max() >= 2**31:
        raise ValueError(f"a token must be below 2**31, got {new.max()}")
    arrays = {"counts": frame.counts, "position": position, "old": old, "new": new + 1}
    columns = {name: narrowed(values) for name, values in (arrays | frame.steps).items()}
    write_segment(path, KIND, {"keys": frame.keys, **columns}, {"info": frame.info}, _DEFLATED)


def read_frame(path: Path) -> Frame:
    """Read a segment; a DamagedFileError if it does not hold what was written."""
    try:
        facts, tensors = read_segment(path, KIND, mapped=False)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        info = facts.get("info")
        if not isinstance(info, dict) or not info.keys() >= _INFO:
            raise DamagedFileError("its facts do not say which run wrote it")
        return _as_frame(info, arrays)
    except DamagedFileError as error:
        raise DamagedFileError(
            f"journal file {path} is damaged: {error}; restore it from a copy, or delete the "
            "journal and start again, since these edits are lost"
        ) from error


def _as_frame(info: dict[str, Any], arrays: dict[str, Array]) -> Frame:
    if arrays.keys() != {"keys", *_DEFLATED}:
        raise DamagedFileError("it has other arrays than a segment of a journal")
    keys = arrays.pop("keys")
    is_unsigned = all(array.dtype.kind == "u" for array in arrays.values())
    if keys.dtype != np.uint64 or keys.ndim != 1 or not is_unsigned:
        raise DamagedFileError("its arrays have another type or shape")
    numbers = {name: array.astype(np.int64) for name, array in arrays.items()}
    counts, documents, num_changes = numbers["counts"], numbers["documents"], len(numbers["new"])
    # The bounds keep the sums from wrapping around.
    fits = (
        all(column.min(initial=0) >= 0 for column in numbers.values())
        and max(counts.max(initial=0), documents.max(initial=0)) <= len(keys) + num_changes
        and len(keys) == len(counts) == documents.sum()
        and num_changes == len(numbers["position"]) == len(numbers["old"]) == counts.sum()
        and len({len(numbers[name]) for name in STEP_COLUMNS}) == 1
    )
    if not fits:
        raise DamagedFileError("its arrays do not fit each other")
    numbers["new"] -= 1
    changes = np.stack([numbers[name] for name in ("position", "old", "new")], axis=1)
    return Frame(info, np.array(keys), counts, changes, {n: numbers[n] for n in STEP_COLUMNS})
