"""Frame: edits as they stand in a segment of a journal.

| array | a number for each | |
| --- | --- | --- |
| `keys` | document that was edited | 64 bits of its content |
| `counts` | document | its changes |
| `position`, `old`, `new` | change | `new` is one more than the token; 0: it was removed |
| `step`, `documents`, ... | step of training, in the same order | see `STEP_COLUMNS` |

All but the keys are deflated. What holds for the whole frame (generation, prior, policy, run) is
`info`, among the segment's facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..ragged import Array, narrowed
from ..segments import DamagedFileError, read_segment, write_segment

KIND = "toedit journal, 1"
STEP_COLUMNS = ("step", "documents", "tokens", "scored", "selected", "changed")
_DEFLATED = ("counts", "position", "old", "new", *STEP_COLUMNS)
_ARRAYS = {"keys", *_DEFLATED}


@dataclass(frozen=True)
class Frame:
    """The edits of some documents, and what they were made with.

    Attributes:
        info: of the whole frame: `generation`, `prior`, `policy`, `run`, `attempt`, `resumed_at`.
        keys: (n,) uint64, of the documents' content.
        counts: (n,) int64, how many changes each has.
        changes: (c, 3) int64, position, old and new token (-1: removed); of all documents, one
            after the other.
        steps: name -> (s,) int64, see `STEP_COLUMNS`; their `documents` sum up to n.
    """

    info: dict[str, Any]
    keys: Array
    counts: Array
    changes: Array
    steps: dict[str, Array]

    @property
    def step_of_document(self) -> Array:
        """(n,) int64."""
        return np.repeat(self.steps["step"], self.steps["documents"])

    @classmethod
    def joined(cls, frames: Sequence[Frame]) -> Frame:
        """One frame of several that were made with the same, one after another."""
        return cls(
            info=frames[0].info,
            keys=np.concatenate([frame.keys for frame in frames]),
            counts=np.concatenate([frame.counts for frame in frames]),
            changes=np.concatenate([frame.changes for frame in frames]),
            steps={
                name: np.concatenate([frame.steps[name] for frame in frames])
                for name in STEP_COLUMNS
            },
        )


class DamagedJournalError(ValueError):
    """A journal's file does not hold what was written to it."""


def write_frame(path: Path, frame: Frame) -> None:
    """Write a segment.

    Raises:
        OSError: it can't be written.
        ValueError: a number is out of range.
    """
    position, old, new = frame.changes.T
    if len(new) and new.max() >= 2**31:
        raise ValueError(f"a token must be below 2**31, got {new.max()}")
    numbers = {"position": position, "old": old, "new": new + 1}
    arrays = {"keys": frame.keys, "counts": narrowed(frame.counts, np.uint8, np.uint32)}
    for name, values in numbers.items():
        arrays[name] = narrowed(values, np.uint8, np.uint16, np.uint32)
    for name, values in frame.steps.items():
        arrays[name] = narrowed(values, np.uint16, np.uint32, np.uint64)
    write_segment(path, KIND, arrays, {"info": frame.info}, _DEFLATED)


def read_frame(path: Path) -> Frame:
    """Read a segment.

    Raises:
        DamagedJournalError: bytes were changed or lost since they were written.
        FileNotFoundError: there is no such file (any more).
    """
    try:
        facts, tensors = read_segment(path, KIND, mapped=False)
        # Journals of before `changed` was written can be read, too.
        if tensors.keys() | {"changed"} != _ARRAYS or not isinstance(facts.get("info"), dict):
            raise DamagedFileError("it has other fields than a segment of a journal")
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return _as_frame(facts["info"], arrays)
    except DamagedFileError as error:
        raise DamagedJournalError(
            f"journal file {path} is damaged: {error}; restore it from a copy, or remove the "
            "journal and begin anew: what was edited then is not known any more"
        ) from error


def _as_frame(info: dict[str, Any], arrays: dict[str, Array]) -> Frame:
    keys = arrays.pop("keys")
    if keys.dtype != np.uint64 or any(array.ndim != 1 for array in (keys, *arrays.values())):
        raise DamagedFileError("its arrays are of another type or shape")
    signed = {name: array.astype(np.int64) for name, array in arrays.items()}
    steps = {name: signed[name] for name in STEP_COLUMNS if name in signed}
    changes = [signed[name] for name in ("position", "old", "new")]
    num_changes = {len(column) for column in changes}
    if any((array < 0).any() for array in signed.values()):
        raise DamagedFileError("a number is out of range")
    if len({len(column) for column in steps.values()}) > 1 or len(num_changes) > 1:
        raise DamagedFileError("its columns are of different lengths")
    # Numbers this large would wrap around in their sum.
    if any(len(s) and int(s.max()) > 2**40 for s in (signed["counts"], steps["documents"])):
        raise DamagedFileError("a document or a step has more than 2**40 of something")
    if not len(keys) == len(signed["counts"]) == steps["documents"].sum():
        raise DamagedFileError("its steps have other numbers of documents")
    if {int(signed["counts"].sum())} != num_changes:
        raise DamagedFileError("its documents have other numbers of changes")
    changes[2] = changes[2] - 1
    if "changed" not in steps:
        steps["changed"] = _changes_of_steps(steps["documents"], signed["counts"], changes[2])
    return Frame(info, np.array(keys), signed["counts"], np.stack(changes, axis=1), steps)


def _changes_of_steps(documents: Array, counts: Array, new: Array) -> Array:
    """How many of the changes of each step are another token, not one that was removed."""
    step = np.repeat(np.repeat(np.arange(len(documents)), documents), counts)
    return np.bincount(step[new >= 0], minlength=len(documents))
