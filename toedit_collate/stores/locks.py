"""Locks between processes: one of them writes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from filelock import FileLock, Timeout

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}

# Locks that a forked process got a copy of. A copy that is collected could end the parent's lock.
_INHERITED: list[FileLock] = []


class WriterLock:
    """Held by the one process that may write; it ends with the process, however that ends.

    Args:
        path: of the lock's file, which stays behind, empty.
        what: is written, for the message.

    Raises:
        BlockingIOError: another process holds it.
        OSError: its file can't be made.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._pid = os.getpid()
        # Whichever thread flushes: the lock is the process's.
        self._lock: FileLock | None = FileLock(str(path), thread_local=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise BlockingIOError(
                f"{what} is being written by another process; give every run a journal of its own"
            ) from None
        except NotImplementedError:
            self._lock = None  # a file system without locks
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._lock = None

    def release(self) -> None:
        """Let another process write."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        if os.getpid() == self._pid:
            lock.release()
        else:
            _INHERITED.append(lock)
