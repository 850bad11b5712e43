"""Which process writes, and when: locks, forks, delayed writes, and the end of a process."""

from __future__ import annotations

import abc
import atexit
import errno
import os
import time
import weakref
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}

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
        except NotImplementedError:
            self._lock = None  # the file system has no locks
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
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

    A forked process has a copy of its parent's unwritten data, and must not write it.

    Attributes:
        max_pending_seconds: the longest time between two writes.
    """

    max_pending_seconds = 60.0

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._last_write = time.monotonic()
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

    def _notice_fork(self) -> None:
        """Call this before anything is added or written."""
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self._leave_to_parent()

    def _start_timer(self) -> None:
        """Call this before a write, so that a failed write is not repeated at once."""
        self._last_write = time.monotonic()

    def _is_late(self) -> bool:
        return time.monotonic() - self._last_write > self.max_pending_seconds

    def _write_or_report(self) -> None:
        if os.getpid() != self._pid:
            return
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
