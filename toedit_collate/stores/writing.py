"""Which process writes, and when: locks, forks, delayed writes, and the end of a process."""

from __future__ import annotations

import abc
import atexit
import os
import weakref
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

# Locks that a forked process inherited; deleting such a copy could release the parent's lock.
_INHERITED: list[FileLock] = []


class WriterLock:
    """A lock of the one process that may write. It ends with that process, even if it is killed.

    Its file is empty and is not deleted. If another process holds the lock, a BlockingIOError names
    `what` is locked.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._pid = os.getpid()
        # Any thread may flush: the lock belongs to the process.
        self._lock: FileLock | None = FileLock(str(path), thread_local=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise BlockingIOError(
                f"{what} is being written by another process; give every run its own journal"
            ) from None
        except (NotImplementedError, OSError):  # the file system has no locks
            self._lock = None

    def release(self) -> None:
        """Let another process write."""
        lock, self._lock = self._lock, None
        if lock is not None and os.getpid() == self._pid:
            lock.release()
        elif lock is not None:
            _INHERITED.append(lock)


class WriteBehind(abc.ABC):
    """Keeps new data in memory, and writes it later, at the latest when the process ends.

    A forked process has a copy of its parent's unwritten data, which it leaves to the parent.
    """

    def __init__(self) -> None:
        self._has_ended = False
        _ALIVE.add(self)

    @abc.abstractmethod
    def flush(self) -> None:
        """Write what is not written yet; an OSError keeps it in memory."""

    def close(self) -> None:
        """Write everything; an OSError keeps it in memory."""
        self.flush()

    @abc.abstractmethod
    def _has_pending(self) -> bool:
        """Whether something is not written yet."""

    @abc.abstractmethod
    def _leave_to_parent(self) -> None:
        """In a forked process: forget what the parent will write."""

    @abc.abstractmethod
    def _report(self, error: Exception) -> None:
        """Log an error of writing that nobody can catch."""

    def _write_or_report(self) -> None:
        try:
            self.close()
        except (OSError, ValueError) as error:
            self._report(error)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # At the end of Python, modules are gone; `_write_all` has run before.
        if not getattr(self, "_has_ended", True) and self._has_pending():
            self._write_or_report()


_ALIVE: weakref.WeakSet[WriteBehind] = weakref.WeakSet()


@atexit.register
def _write_all() -> None:
    for store in list(_ALIVE):
        if store._has_pending():
            store._write_or_report()
        store._has_ended = True


def _leave_all_to_parent() -> None:
    for store in list(_ALIVE):
        store._leave_to_parent()


if hasattr(os, "register_at_fork"):  # not on Windows, which can't fork
    os.register_at_fork(after_in_child=_leave_all_to_parent)
