"""The folder of a journal: a file for each generation and rank, and what of them holds."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .frames import Array, Frame, encode, read_frames, whole_length

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"generation-(\d+)\.rank-(\d+)\.journal")


def file_of(folder: Path, generation: int, rank: int) -> Path:
    """The file that a rank writes in a generation."""
    return folder / f"generation-{generation:04d}.rank-{rank:05d}.journal"


def list_files(folder: Path) -> list[tuple[int, int, Path]]:
    """(generation, rank, path) of all files, in that order."""
    if not folder.is_dir():
        return []
    found = [(_NAME.fullmatch(entry.name), Path(entry.path)) for entry in os.scandir(folder)]
    return sorted((int(m[1]), int(m[2]), path) for m, path in found if m)


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file."""
    return {path.name: path.stat().st_size for _, _, path in list_files(folder)}


class JournalWriter:
    """Appends frames to one file; a second writer of the same file is refused.

    Raises:
        BlockingIOError: another process is writing the file.
        DamagedJournalError: what is in the file can't be read.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._pid = os.getpid()
        self._file = path.open("ab", buffering=0)
        try:
            _lock(self._file.fileno(), path)
            # A process that was killed in the middle of writing left a torn frame behind.
            self._file.truncate(whole_length(path))
        except BaseException:
            self._file.close()
            raise

    def append(self, frame: Frame) -> int:
        """Write a frame, and see it safely on the disk; returns its length in bytes.

        Raises:
            OSError: it can't be written, the disk being full, say; then the file is as before.
        """
        data = memoryview(encode(frame))
        end = os.fstat(self._file.fileno()).st_size
        written = 0
        try:
            while written < len(data):  # a write may be short
                written += self._file.write(data[written:])
            os.fsync(self._file.fileno())
        except BaseException:
            # No torn frame may stay: the next one would stand behind it.
            self._file.truncate(end)
            raise
        return written

    def close(self) -> None:
        """Let another process write the file."""
        # A forked worker shares the lock, so that closing the file would not end it; and a worker
        # that closes the file must not end the lock of the process that writes.
        if fcntl is not None and not self._file.closed and os.getpid() == self._pid:
            with contextlib.suppress(OSError):
                fcntl.flock(self._file.fileno(), fcntl.LOCK_UN)
        self._file.close()


def _lock(descriptor: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            f"journal file {path} is being written by another process; give every run a journal "
            "of its own"
        ) from error
    except OSError:
        return  # a file system without locks


def read_valid(folder: Path) -> Iterator[tuple[int, Frame, Array]]:
    """All frames, and which of their documents hold.

    A run that was killed and resumed at step s is another *attempt* of the same run, which goes
    through the steps from s again: what earlier attempts wrote of those is void.

    Yields:
        rank, frame, and (n,) bool, True where a document's edit holds.

    Raises:
        DamagedJournalError: a file is damaged.
    """
    frames = [(rank, frame) for _, rank, path in list_files(folder) for frame in read_frames(path)]
    attempts: dict[str, dict[int, int]] = {}
    for _, frame in frames:
        info = frame.info
        attempts.setdefault(info["run"], {})[info["attempt"]] = info["resumed_at"]
    for rank, frame in frames:
        yield rank, frame, frame.step_of_document < last_step(frame.info, attempts)


def last_step(info: dict[str, Any], attempts: dict[str, dict[int, int]]) -> float:
    """From which step on what an attempt wrote is void."""
    later = [step for attempt, step in attempts[info["run"]].items() if attempt > info["attempt"]]
    return min(later, default=np.inf)
