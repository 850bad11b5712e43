"""WriteBehind: the one place that knows of forks, of the end of a process, and of late writes."""

from __future__ import annotations

import abc
import atexit
import os
import time
import weakref
from typing import Any


class WriteBehind(abc.ABC):
    """Gathers what it is given, and writes it later; at the latest when the process ends.

    A forked process has a copy of what its parent has gathered, and must not write it, too.

    Attributes:
        max_pending_seconds: after so many, what was gathered is written.
    """

    max_pending_seconds = 60.0

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._last_write = time.monotonic()
        self._has_ended = False
        _ALIVE.add(self)

    @abc.abstractmethod
    def flush(self) -> None:
        """Write what was not written yet.

        Raises:
            OSError: it can't be written; it stays in memory.
        """

    def close(self) -> None:
        """Write everything.

        Raises:
            OSError: it can't be written.
        """
        self.flush()

    @abc.abstractmethod
    def _has_pending(self) -> bool:
        """Whether something was not written yet."""

    @abc.abstractmethod
    def _leave_to_parent(self) -> None:
        """In a forked process: what its parent has not written is the parent's to write."""

    @abc.abstractmethod
    def _report(self, error: Exception) -> None:
        """Say that nothing can be written, where nobody is left to catch an error."""

    def _notice_fork(self) -> None:
        """To be called before anything is added, or written."""
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self._leave_to_parent()

    def _count_from_now(self) -> None:
        """Whatever comes of it: a write that fails is tried again after the same time."""
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
        # At the end of Python modules are gone; _write_all has been there before.
        if not getattr(self, "_has_ended", True) and self._has_pending():
            self._write_or_report()


_ALIVE: weakref.WeakSet[WriteBehind] = weakref.WeakSet()


@atexit.register
def _write_all() -> None:
    for store in list(_ALIVE):
        if store._has_pending():
            store._write_or_report()
        store._has_ended = True
