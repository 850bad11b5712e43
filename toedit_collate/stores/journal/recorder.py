"""EditRecorder: the edits of a journal as one process knows them, and adds to them."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...distributed import rank
from ..ragged import Array
from ..write_behind import WriteBehind
from .counts import check_may_start
from .files import JournalWriter, list_files, read_valid
from .frames import Frame
from .pending import PendingEdits
from .table import EditTable, Found

logger = logging.getLogger("toedit_collate")

# Edits are written when there are so many documents, or after a minute; and, by `ToEditCallback`,
# before each checkpoint.
MAX_PENDING_DOCUMENTS = 50_000


class EditRecorder(WriteBehind):
    """What the collator and the callback ask of a `Journal`: look up, record, write.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.run_started = False  # whether `start_run` was called
        self._tables: dict[int, EditTable] = {}
        self._names: set[str] | None = None  # of the files that the tables hold; None: read none
        self._writer: JournalWriter | None = None
        self._generation: int | None = None
        self._made_with: dict[str, Any] = {}
        self._run: dict[str, Any] = {"run": uuid.uuid4().hex, "attempt": 0, "resumed_at": 0}
        self._pending = PendingEdits()

    @property
    def generations(self) -> list[int]:
        """Numbers of the generations that edited something."""
        self._read_new()
        return sorted(number for number, table in self._tables.items() if len(table))

    def flush(self) -> None:
        """Write what was not written yet.

        Raises:
            BlockingIOError: another process writes the journal.
            OSError: it can't be written; the edits stay in memory.
        """
        self._notice_fork()
        if not self._has_pending():
            return
        info = {"generation": self._generation, **self._made_with, **self._run}
        self._write(self._pending, info)
        self._pending = PendingEdits()

    def close(self) -> None:
        """Write everything, and let other processes write to the journal.

        Raises:
            BlockingIOError: another process writes the journal.
            OSError: it can't be written; the edits stay in memory.
        """
        self.flush()
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        self._generation = None

    def start_run(self, run: str, *, attempt: int = 0, resumed_at: int = 0) -> None:
        """Say which run of training writes from now on.

        Args:
            run: its identity, the same on all ranks and after it was resumed.
            attempt: how often the run was resumed.
            resumed_at: step of the checkpoint. What earlier attempts wrote of later steps is void
                from now on.
        """
        self.flush()
        self._run = {"run": run, "attempt": attempt, "resumed_at": resumed_at}
        self.run_started = True
        if attempt:
            # On the disk before the first edit: from here on, what it says is void is void.
            self._write(PendingEdits(), {"generation": 0, **self._run})
        self.refresh()

    def last_attempt(self, run: str) -> int | None:
        """The number of a run's last attempt; None: it wrote nothing."""
        attempts = [f.info["attempt"] for _, f, _ in read_valid(self.path) if f.info["run"] == run]
        return max(attempts, default=None)

    def start_generation(self, generation: int, prior: str, policy: dict[str, Any]) -> None:
        """Say what is recorded from now on, if it is not known yet.

        Args:
            generation: its number, from 1.
            prior: fingerprint of the prior's weights.
            policy: of the edit, as JSON.

        Raises:
            ValueError: another prior or policy made this generation, or there are later ones.
        """
        self._notice_fork()
        made_with = {"prior": prior, "policy": policy}
        if (generation, made_with) == (self._generation, self._made_with):
            return
        self.close()
        check_may_start(self.path, generation, prior, policy)
        self._generation, self._made_with = generation, made_with

    def refresh(self) -> None:
        """Read what other ranks have written."""
        self.flush()
        self._names = None
        self._tables.clear()

    def look_up(self, keys: Array, generation: int) -> Found:
        """The edits that one generation made of n documents, by their (n,) uint64 keys."""
        if self._names is None:
            self._read_new()
        return self._tables.setdefault(generation, EditTable()).look_up(keys)

    def record(
        self, keys: Array, lengths: Array, counts: Array, changes: Array, step: int, **sums: int
    ) -> None:
        """Add the edits of n documents, made at a step of training.

        Args:
            keys: (n,) uint64, of the source documents.
            lengths: (n,) int64, tokens of each.
            counts: (n,) int64, changes of each.
            changes: (c, 3), position, old and new token (-1: removed), relative to the document as
                it was before this edit.
            step: updates made before.
            sums: `scored`, `selected` and `changed` tokens; of the last, by default as many as in
                `changes` became another. Where a generation edits the source, `changes` also take
                back what an earlier one did.

        Raises:
            RuntimeError: `start_generation` was not called.
            BlockingIOError: another process writes the journal.
            OSError: it can't be written; the edits stay in memory.
        """
        self._notice_fork()
        if self._generation is None:
            raise RuntimeError("start_generation() comes before record()")
        if not len(keys):
            return
        if self._names is None:
            self._read_new()
        self._tables.setdefault(self._generation, EditTable()).add(keys, counts, changes)
        sums = {"tokens": int(lengths.sum()), "changed": int((changes[:, 2] >= 0).sum()), **sums}
        self._pending.add(keys, counts, changes, step, **sums)
        if len(self._pending) >= MAX_PENDING_DOCUMENTS or self._is_late():
            self.flush()

    def _has_pending(self) -> bool:
        return len(self._pending) > 0

    def _leave_to_parent(self) -> None:
        self._pending = PendingEdits()
        if self._writer is not None:
            self._writer.close()
        self._writer = self._generation = self._names = None
        self._tables.clear()

    def _report(self, error: Exception) -> None:
        logger.error(
            "the last edits of %d documents are not in the journal, which can't be written: %s",
            len(self._pending),
            error,
        )
        self._pending = PendingEdits()

    def _write(self, edits: PendingEdits, info: dict[str, Any]) -> None:
        self._count_from_now()
        with self._telling_why():
            if self._writer is None:
                self._writer = JournalWriter(self.path, rank())
            name, joined = self._writer.write(edits.as_frame(info))
        if self._names is not None:
            # Of what others have written meanwhile, nothing is known yet.
            self._names = {name, *self._names} - set(joined)

    @contextlib.contextmanager
    def _telling_why(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as error:
            raise OSError(
                error.errno,
                f"the journal {self.path} can't be written ({error.strerror or error}); make room, "
                "or a folder that can be written to, and resume the run from its last checkpoint",
            ) from error

    def _read_new(self) -> None:
        """Read the files if another process has written to them."""
        if {file.path.name for file in list_files(self.path)} == self._names:
            return
        self.flush()
        # Before they are read: what is written meanwhile counts as new.
        names = {file.path.name for file in list_files(self.path)}
        parts: dict[int, list[tuple[int, Frame, Array]]] = {}
        for part in read_valid(self.path):
            parts.setdefault(part[1].info["generation"], []).append(part)
        self._tables = {number: EditTable.of(of) for number, of in parts.items()}
        self._names = names
