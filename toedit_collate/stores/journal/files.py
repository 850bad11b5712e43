"""The files of a journal: the edits in each, and which edits are valid.

`generation-0002.rank-00000.000003.safetensors` is the fourth segment of rank 0 in generation 2. It
holds a frame, with each array in the smallest type that holds its values:

| array | one number for each | |
| --- | --- | --- |
| `keys` | document that was edited | 64 bits of its content |
| `counts` | document | number of its changes |
| `position`, `old`, `new` | change | `new` is the token + 1; 0: the token was removed |
| `step`, `documents`, ... | batch, in the same order | see `STEP_COLUMNS` |

What the whole frame has in common (generation, prior, policy, run) is `info`, one of the segment's
facts.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..ragged import Array, narrowed
from ..segments import UNFINISHED, DamagedFileError, read_segment, write_segment
from ..writing import WriterLock

KIND = "toedit journal, 3"
STEP_COLUMNS = ("step", "documents", "tokens", "scored", "selected", "changed")
_COLUMNS = {"counts", "position", "old", "new", *STEP_COLUMNS}
_NAME = re.compile(r"generation-(\d+)\.rank-(\d+)\.(\d+)\.safetensors")
_INFO = {"generation", "run", "attempt", "resumed_at"}


@dataclass(frozen=True)
class Frame:
    """The edits of n documents, and what they were made with.

    Attributes:
        info: `generation` (0: it only notes that a run was resumed), `prior`, `policy`, `run`,
            `attempt`, `resumed_at`.
        keys: (n,) uint64, of the documents' content.
        counts: (n,) int64, number of changes of each document.
        changes: (c, 3) int64, position, old and new token (-1: removed).
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
    write_segment(path, KIND, {"keys": frame.keys, **columns}, {"info": frame.info})


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
    if arrays.keys() != {"keys", *_COLUMNS}:
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


class SegmentFile(NamedTuple):
    """A file of a journal, by its name. Generation 0 only notes that a run was resumed."""

    generation: int
    rank: int
    number: int
    path: Path

    def read(self) -> Frame:
        """Read the file; a DamagedFileError if it does not hold what was written."""
        frame = read_frame(self.path)
        if frame.info["generation"] != self.generation:
            raise DamagedFileError(
                f"journal file {self.path} is of generation {frame.info['generation']}; was it "
                "renamed?"
            )
        return frame


def file_of(folder: Path, generation: int, rank: int, number: int) -> SegmentFile:
    """The file for a segment of a rank in a generation."""
    name = f"generation-{generation:04d}.rank-{rank:05d}.{number:06d}.safetensors"
    return SegmentFile(generation, rank, number, folder / name)


def scan_files(folder: Path) -> list[SegmentFile]:
    """The files in a folder, by generation, rank and number."""
    files = []
    for name in os.listdir(folder) if folder.is_dir() else []:
        if match := _NAME.fullmatch(name):
            generation, rank, number = map(int, match.groups())
            files.append(SegmentFile(generation, rank, number, folder / name))
    return sorted(files)


def list_files(folder: Path) -> list[SegmentFile]:
    """As `scan_files`; a DamagedFileError if a segment is missing."""
    files = scan_files(folder)
    for (generation, rank), of_rank in itertools.groupby(files, lambda file: file[:2]):
        for expected, file in enumerate(of_rank):
            if file.number != expected:
                raise DamagedFileError(
                    f"journal {folder} is damaged: of generation {generation}, rank {rank}, "
                    f"segment {expected} is missing or there twice (next is {file.path.name}); "
                    "restore it from a copy"
                )
    return files


class JournalWriter:
    """Writes the segments of one rank into a folder, which it makes if it does not exist.

    A second writer of the same rank gets a BlockingIOError.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = WriterLock(
            folder / f"rank-{rank:05d}.lock", f"rank {rank} of the journal {folder}"
        )
        # Remove what a killed process left behind; nobody else writes this rank.
        with contextlib.suppress(OSError):
            for path in folder.glob(f"*.rank-{rank:05d}.*{UNFINISHED}"):
                path.unlink()

    def write(self, frame: Frame) -> str:
        """Write a frame and flush it to the disk; after an OSError, nothing has changed.

        Returns:
            The name of its file.
        """
        generation = frame.info["generation"]
        before = [f for f in list_files(self._folder) if f[:2] == (generation, self._rank)]
        new = file_of(self._folder, generation, self._rank, len(before))
        write_frame(new.path, frame)
        return new.path.name

    def close(self) -> None:
        """Let another process write."""
        self._lock.release()


def read_valid(folder: Path) -> Iterator[tuple[int, Frame]]:
    """Yield the rank and valid edits of each frame, by generation, rank and number.

    Raises:
        DamagedFileError: a file is damaged or missing.
    """
    files = list_files(folder)
    for file, frame in zip(files, without_void([file.read() for file in files]), strict=True):
        yield file.rank, frame


def without_void(frames: Sequence[Frame]) -> list[Frame]:
    """The frames of a journal without their void edits.

    When a killed run is resumed at step s, its next attempt repeats the steps from s on, so what
    earlier attempts wrote of these steps is void.
    """
    resumes = {tuple(frame.info[n] for n in ("run", "attempt", "resumed_at")) for frame in frames}

    def void_from(info: dict[str, Any]) -> float:
        later = (at for run, n, at in resumes if run == info["run"] and n > info["attempt"])
        return min(later, default=math.inf)

    return [frame.before(void_from(frame.info)) for frame in frames]
