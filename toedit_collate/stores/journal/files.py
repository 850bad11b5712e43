"""The folder of a journal: segments by generation and rank, and what of them holds.

`generation-0002.rank-00000.000003-000005.safetensors` holds what rank 0 wrote of generation 2 as
its segments 3, 4 and 5: a writer joins its small segments to larger ones, so that there are few. A
segment within another is of no account any more. Until it is removed, both may be there; so a
process may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..locks import WriterLock
from ..segments import UNFINISHED
from .frames import Array, DamagedJournalError, Frame, read_frame, write_frame

_NAME = re.compile(r"generation-(\d+)\.rank-(\d+)\.(\d+)-(\d+)\.safetensors")
_OLD_NAME = re.compile(r"generation-\d+\.rank-\d+\.journal")
_INFO = {"generation": int, "run": str, "attempt": int, "resumed_at": int}
_ORIGIN = {"prior": str, "policy": dict}

# A segment is not joined to one of so many documents: writing them anew would take too long.
MAX_JOINED_DOCUMENTS = 2**20
# A folder is listed again when another process changed it meanwhile.
_NUM_TRIES = 5


class SegmentFile(NamedTuple):
    """A file of a journal.

    Attributes:
        generation: whose edits it holds; 0: it says only that a run was resumed.
        rank: of the process that wrote it.
        first: number of the first of its rank's segments that were joined to it.
        last: number of the last one.
        path: where it is.
    """

    generation: int
    rank: int
    first: int
    last: int
    path: Path


def file_of(folder: Path, generation: int, rank: int, first: int, last: int) -> SegmentFile:
    """The file of some segments of a rank in a generation."""
    name = f"generation-{generation:04d}.rank-{rank:05d}.{first:06d}-{last:06d}.safetensors"
    return SegmentFile(generation, rank, first, last, folder / name)


def list_files(folder: Path) -> list[SegmentFile]:
    """All files that count, by generation, rank and number.

    Raises:
        DamagedJournalError: a segment is missing; or the journal is of another version.
    """
    for _ in range(_NUM_TRIES):
        files = scan_files(folder)[0]
        problem = missing_segment(files)
        if problem is None:
            return files
        time.sleep(0.02)  # a writer may have joined some while the folder was listed
    raise DamagedJournalError(f"journal {folder} is damaged: {problem}; restore it from a copy")


def scan_files(folder: Path) -> tuple[list[SegmentFile], list[Path]]:
    """The files that count, and those that stand within others.

    Raises:
        DamagedJournalError: the journal is of another version.
    """
    if not folder.is_dir():
        return [], []
    found = []
    for entry in os.scandir(folder):
        match = _NAME.fullmatch(entry.name)
        if match:
            generation, rank, first, last = map(int, match.groups())
            found.append(SegmentFile(generation, rank, first, last, Path(entry.path)))
        elif _OLD_NAME.fullmatch(entry.name):
            raise DamagedJournalError(
                f"journal {folder} was written by an earlier version of this package, in another "
                f"format ({entry.name}); read it with that version, or give the run a new journal"
            )
    found.sort(key=lambda file: (*file[:3], -file.last))
    files: list[SegmentFile] = []
    superseded = []
    for file in found:
        if files and files[-1][:2] == file[:2] and file.last <= files[-1].last:
            superseded.append(file.path)
        else:
            files.append(file)
    return files, superseded


def missing_segment(files: list[SegmentFile]) -> str | None:
    """What is wrong with the numbers of a journal's segments; None: nothing."""
    for (generation, rank), of in itertools.groupby(files, lambda file: file[:2]):
        expected = 0
        for file in of:
            if file.first != expected or file.last < file.first:
                return (
                    f"of generation {generation}, rank {rank}, segment {expected} is missing or "
                    f"there twice (next is {file.path.name})"
                )
            expected = file.last + 1
    return None


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file."""
    return {file.path.name: file.path.stat().st_size for file in list_files(folder)}


class JournalWriter:
    """Writes the segments of one rank; a second writer of that rank is refused.

    Args:
        folder: of the journal; made where it is not there.
        rank: of this process.

    Raises:
        BlockingIOError: another process writes the same.
        OSError: the folder can't be written to.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = WriterLock(
            folder / f"rank-{rank:05d}.lock", f"rank {rank} of the journal {folder}"
        )
        self._info: dict[str, Any] = {}
        self._own: list[tuple[SegmentFile, int]] = []  # what may be joined, and its documents
        self._next = 0
        # What a process left behind that was killed while it wrote; nobody else writes this rank.
        with contextlib.suppress(OSError):
            for path in (*scan_files(folder)[1], *folder.glob(f"*{UNFINISHED}")):
                if f".rank-{rank:05d}." in path.name:
                    path.unlink()

    def write(self, frame: Frame) -> tuple[str, list[str]]:
        """Write a frame, and see it safely on the disk.

        Returns:
            The name of its file, and the names of those that were joined to it.

        Raises:
            OSError: it can't be written, the disk being full, say; then all is as before.
        """
        generation = frame.info["generation"]
        if frame.info != self._info:
            self._info, self._own = frame.info, []
            numbers = [file.last for file in list_files(self._folder)
                       if file[:2] == (generation, self._rank)]  # fmt: skip
            self._next = 1 + max(numbers, default=-1)
        joined: list[SegmentFile] = []
        frames, num_documents = [frame], len(frame.keys)
        for file, size in reversed(self._own):
            if size > 2 * num_documents or size + num_documents > MAX_JOINED_DOCUMENTS:
                break
            joined.append(file)
            frames.append(read_frame(file.path))
            num_documents += size
        first = joined[-1].first if joined else self._next
        new = file_of(self._folder, generation, self._rank, first, self._next)
        write_frame(new.path, Frame.joined(frames[::-1]))
        self._next += 1
        self._own = [*self._own[: len(self._own) - len(joined)], (new, num_documents)]
        for file in joined:
            with contextlib.suppress(OSError):  # it does not count any more
                file.path.unlink()
        return new.path.name, [file.path.name for file in joined]

    def close(self) -> None:
        """Let another process write."""
        self._lock.release()


def read_valid(folder: Path) -> Iterator[tuple[int, Frame, Array]]:
    """All frames, and which of their documents hold.

    A run that was killed and resumed at step s is another *attempt* of the same run, which goes
    through the steps from s again: what earlier attempts wrote of those is void.

    Yields:
        rank, frame, and (n,) bool, True where a document's edit holds.

    Raises:
        DamagedJournalError: a file is damaged, or missing.
    """
    frames = _read_all(folder)
    attempts: dict[str, dict[int, int]] = {}
    for _, frame in frames:
        info = frame.info
        attempts.setdefault(info["run"], {})[info["attempt"]] = info["resumed_at"]
    for rank, frame in frames:
        yield rank, frame, frame.step_of_document < last_step(frame.info, attempts)


def _read_all(folder: Path) -> list[tuple[int, Frame]]:
    for number in range(_NUM_TRIES):
        files = list_files(folder)
        try:
            frames = [(file.rank, read_frame(file.path)) for file in files]
            break
        except FileNotFoundError:  # joined to another meanwhile
            if number == _NUM_TRIES - 1:
                raise
    for file, (_, frame) in zip(files, frames, strict=True):
        wrong = wrong_info(frame, file.generation)
        if wrong:
            raise DamagedJournalError(
                f"journal file {file.path} is no frame of a journal: {wrong}; "
                "`toedit journal verify` checks all files"
            )
    return frames


def wrong_info(frame: Frame, generation: int) -> str:
    """What is wrong with a frame's `info`; nothing: "".

    Args:
        frame: of a file.
        generation: that the file's name says.
    """
    expected = {**_INFO, **(_ORIGIN if len(frame.keys) else {})}
    missing = sorted(expected.keys() - frame.info.keys())
    if missing:
        return f"it does not name {', '.join(missing)}"
    for name, kind in expected.items():
        value = frame.info[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"its {name} is {value!r}"
    if frame.info["generation"] != generation:
        return f"it is of generation {frame.info['generation']}; was the file renamed?"
    return ""


def last_step(info: dict[str, Any], attempts: dict[str, dict[int, int]]) -> float:
    """From which step on what an attempt wrote is void."""
    later = [step for attempt, step in attempts[info["run"]].items() if attempt > info["attempt"]]
    return min(later, default=np.inf)
