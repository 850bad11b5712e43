"""The folder of a journal: its segments by generation and rank, and which edits are valid.

`generation-0002.rank-00000.000003-000005.safetensors` holds segments 3, 4 and 5 of rank 0 in
generation 2. A writer joins its small segments into larger ones, to keep few files. A segment that
is part of a larger one is ignored until it is deleted, so a kill at any moment does no harm.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..segments import UNFINISHED, DamagedFileError
from ..writing import WriterLock
from .frames import Frame, read_frame, write_frame

_NAME = re.compile(r"generation-(\d+)\.rank-(\d+)\.(\d+)-(\d+)\.safetensors")

# Larger segments are not joined, because that would take too long.
MAX_JOINED_DOCUMENTS = 2**20
# A folder is listed again if another process changed it in the meantime.
_NUM_TRIES = 5


class SegmentFile(NamedTuple):
    """A file of a journal: the segments `first` to `last` of a rank in a generation.

    Generation 0 only notes that a run was resumed.
    """

    generation: int
    rank: int
    first: int
    last: int
    path: Path

    def read(self) -> Frame:
        """Read the file; a FileNotFoundError if it was joined into another one meanwhile."""
        frame = read_frame(self.path)
        if frame.info["generation"] != self.generation:
            raise DamagedFileError(
                f"journal file {self.path} is of generation {frame.info['generation']}; was it "
                "renamed?"
            )
        return frame


def file_of(folder: Path, generation: int, rank: int, first: int, last: int) -> SegmentFile:
    """The file for some segments of a rank in a generation."""
    name = f"generation-{generation:04d}.rank-{rank:05d}.{first:06d}-{last:06d}.safetensors"
    return SegmentFile(generation, rank, first, last, folder / name)


def scan_files(folder: Path) -> tuple[list[SegmentFile], list[Path]]:
    """The files that count, by generation, rank and number; and those that are part of another."""
    if not folder.is_dir():
        return [], []
    found = []
    for entry in os.scandir(folder):
        if match := _NAME.fullmatch(entry.name):
            generation, rank, first, last = map(int, match.groups())
            found.append(SegmentFile(generation, rank, first, last, Path(entry.path)))
    found.sort(key=lambda file: (*file[:3], -file.last))
    files: list[SegmentFile] = []
    superseded = []
    for file in found:
        if files and files[-1][:2] == file[:2] and file.last <= files[-1].last:
            superseded.append(file.path)
        else:
            files.append(file)
    return files, superseded


def list_files(folder: Path) -> list[SegmentFile]:
    """The files that count, by generation, rank and number; a DamagedFileError at a gap."""
    for _ in range(_NUM_TRIES):
        files = scan_files(folder)[0]
        problem = _missing_segment(files)
        if not problem:
            return files
        time.sleep(0.02)  # a writer may have joined some while the folder was listed
    raise DamagedFileError(f"journal {folder} is damaged: {problem}; restore it from a copy")


def _missing_segment(files: list[SegmentFile]) -> str:
    for (generation, rank), of in itertools.groupby(files, lambda file: file[:2]):
        expected = 0
        for file in of:
            if file.first != expected or file.last < file.first:
                return (
                    f"of generation {generation}, rank {rank}, segment {expected} is missing or "
                    f"there twice (next is {file.path.name})"
                )
            expected = file.last + 1
    return ""


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
        self._info: dict[str, Any] = {}
        self._own: list[tuple[SegmentFile, int]] = []  # files that may be joined, their documents
        self._next = 0
        # Remove what a killed process left behind; nobody else writes this rank.
        with contextlib.suppress(OSError):
            for path in (*scan_files(folder)[1], *folder.glob(f"*{UNFINISHED}")):
                if f".rank-{rank:05d}." in path.name:
                    path.unlink()

    def write(self, frame: Frame) -> tuple[str, list[str]]:
        """Write a frame and flush it to the disk; after an OSError, nothing has changed.

        Returns:
            The name of its file, and the names of the files that were joined into it.
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
            with contextlib.suppress(OSError):  # it is ignored anyway
                file.path.unlink()
        return new.path.name, [file.path.name for file in joined]

    def close(self) -> None:
        """Let another process write."""
        self._lock.release()


def read_valid(folder: Path) -> Iterator[tuple[int, Frame]]:
    """Yield the rank and valid edits of each frame, by generation, rank and number.

    Raises:
        DamagedFileError: a file is damaged or missing.
    """
    for number in range(_NUM_TRIES):
        files = list_files(folder)
        try:
            frames = [file.read() for file in files]
            break
        except FileNotFoundError:  # it was joined into another one in the meantime
            if number == _NUM_TRIES - 1:
                raise
    for file, frame in zip(files, without_void(frames), strict=True):
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
