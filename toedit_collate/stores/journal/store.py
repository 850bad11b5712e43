"""What one process knows of a journal: read from its files, and not yet written to them."""

from __future__ import annotations

import atexit
import contextlib
import os
import time
import uuid
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from ...distributed import rank
from ..ragged import ranges
from .files import JournalWriter, file_of, read_valid, sizes
from .frames import STEP_COLUMNS, Array
from .pending import PendingEdits
from .table import EditTable

# Edits are written when there are so many documents, or after so many seconds; and, by
# `ToEditCallback`, before each checkpoint.
MAX_PENDING_DOCUMENTS = 50_000
MAX_PENDING_SECONDS = 60.0

STORES: weakref.WeakValueDictionary[Path, JournalStore] = weakref.WeakValueDictionary()


def store_of(path: Path) -> JournalStore:
    """The store of a folder; the same for all journals of one process."""
    folder = path.resolve()
    store = STORES.get(folder)
    if store is None:
        store = STORES[folder] = JournalStore(path)
    return store


class JournalStore:
    """What one process knows of the journal in one folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tables: dict[int, EditTable] = {}
        self._sizes: dict[str, int] | None = None
        self._writer: JournalWriter | None = None
        self._generation: int | None = None
        self._made_with: dict[str, Any] = {}
        self._run: dict[str, Any] = {"run": uuid.uuid4().hex, "attempt": 0, "resumed_at": 0}
        self.run_started = False
        self._pending = PendingEdits()
        self._last_write = time.monotonic()
        self._pid = os.getpid()
        # What was not written is written at exit; not by a forked worker, which has a copy of it.
        atexit.register(_close_at_exit, weakref.ref(self))

    def __del__(self) -> None:
        # At the end of Python modules are gone, so after _close_at_exit nothing may be called.
        if self._writer is not None or len(self._pending):
            self.close()

    def start_run(self, run: str, attempt: int, resumed_at: int) -> None:
        """See `Journal.start_run`."""
        self._leave_to_parent()
        self.flush()
        self._run = {"run": run, "attempt": attempt, "resumed_at": resumed_at}
        self.run_started = True
        if attempt:
            # On the disk before the first edit: from here on, what it says is void is void.
            with contextlib.closing(self._open_writer(0)) as writer:
                writer.append(PendingEdits().as_frame({"generation": 0, **self._run}))
        self.refresh()

    def last_attempt(self, run: str) -> int | None:
        """See `Journal.last_attempt`."""
        attempts = [f.info["attempt"] for _, f, _ in read_valid(self._path) if f.info["run"] == run]
        return max(attempts, default=None)

    def start_generation(self, generation: int, prior: str, policy: dict[str, Any]) -> None:
        """See `Journal.start_generation`."""
        self._leave_to_parent()
        made_with = {"prior": prior, "policy": policy}
        if (generation, made_with) == (self._generation, self._made_with):
            return
        self.close()
        for _, frame, holds in read_valid(self._path):
            there = frame.info["generation"]
            if not holds.any():
                continue
            if there > generation:
                raise ValueError(
                    f"the journal {self._path} already holds generation {there}, so generation "
                    f"{generation} can't be edited any more; resume the run that wrote it "
                    "(resume_from_checkpoint=True), give this run a new journal, or delete the "
                    "folder if that run is not wanted"
                )
            if there == generation:
                _check_made_alike(self._path, generation, frame.info, made_with)
        self._generation, self._made_with = generation, made_with

    def generations(self) -> list[int]:
        """See `Journal.generations`."""
        self._load_changed()
        return sorted(number for number, table in self._tables.items() if len(table))

    def table(self, generation: int) -> EditTable:
        """The edits of a generation, read when they are first asked for."""
        if self._sizes is None:
            self._load_changed()
        return self._tables.setdefault(generation, EditTable())

    def stats(self) -> dict[int, dict[str, float]]:
        """See `Journal.stats`."""
        self.flush()
        sums: dict[int, dict[str, float]] = {}
        for _, frame, holds in read_valid(self._path):
            if not holds.any():
                continue
            of = sums.setdefault(
                frame.info["generation"],
                dict.fromkeys((*STEP_COLUMNS[1:], "changed", "dropped"), 0),
            )
            # What is void is void by its step: of a step, all documents hold, or none does.
            kept = np.isin(frame.steps["step"], frame.step_of_document[holds])
            for name in STEP_COLUMNS[1:]:
                of[name] += int(frame.steps[name][kept].sum())
            new = frame.changes[np.repeat(holds, frame.counts), 2]
            of["changed"] += int((new >= 0).sum())
            of["dropped"] += int((new < 0).sum())
        for of in sums.values():
            for name in ("selected", "changed"):
                of[f"{name}_share"] = of[name] / of["scored"] if of["scored"] else float("nan")
        return dict(sorted(sums.items()))

    def record(
        self,
        keys: Array,
        lengths: Array,
        counts: Array,
        changes: Array,
        step: int,
        sums: dict[str, int],
    ) -> None:
        """See `Journal.record`."""
        self._leave_to_parent()
        if self._generation is None:
            raise RuntimeError("start_generation() comes before record()")
        if not len(keys):
            return
        table = self.table(self._generation)
        ends = np.cumsum(counts)
        for key, begin, end in zip(keys.tolist(), ends - counts, ends, strict=True):
            table.add(key, changes[begin:end])
        self._pending.add(keys, counts, changes, step, tokens=int(lengths.sum()), **sums)
        waited = time.monotonic() - self._last_write
        if len(self._pending) >= MAX_PENDING_DOCUMENTS or waited > MAX_PENDING_SECONDS:
            self.flush()

    def refresh(self) -> None:
        """Forget what was read, so that it is read anew."""
        self.flush()
        self._sizes = None
        self._tables.clear()

    def flush(self) -> None:
        """Write what was not written yet."""
        self._last_write = time.monotonic()
        if not len(self._pending) or os.getpid() != self._pid:
            return
        assert self._generation is not None
        if self._writer is None:
            self._writer = self._open_writer(self._generation)
        info = {"generation": self._generation, **self._made_with, **self._run}
        length = self._writer.append(self._pending.as_frame(info))
        self._pending = PendingEdits()
        if self._sizes is not None:
            # Of what others have written meanwhile, nothing is known yet.
            name = self._writer.path.name
            self._sizes[name] = self._sizes.get(name, 0) + length

    def close(self) -> None:
        """Write everything, and let other processes write."""
        self.flush()
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        self._generation = None

    def _leave_to_parent(self) -> None:
        """In a forked process: what its parent has not written is the parent's to write."""
        if os.getpid() == self._pid:
            return
        self._pid = os.getpid()
        self._pending = PendingEdits()
        if self._writer is not None:
            self._writer.close()
        self._writer = self._generation = self._sizes = None
        self._tables.clear()

    def _open_writer(self, generation: int) -> JournalWriter:
        return JournalWriter(file_of(self._path, generation, rank()))

    def _load_changed(self) -> None:
        """Read the files if another process has written to them."""
        if sizes(self._path) == self._sizes:
            return
        self.flush()
        now = sizes(self._path)  # before they are read: what is appended meanwhile counts as new
        parts: dict[int, list[tuple[Array, Array, Array, Array]]] = {}
        for written_by, frame, holds in read_valid(self._path):
            order = np.stack([frame.step_of_document, np.full(len(frame.keys), written_by)], axis=1)
            parts.setdefault(frame.info["generation"], []).append(
                (
                    order[holds],
                    frame.keys[holds],
                    frame.counts[holds],
                    frame.changes[np.repeat(holds, frame.counts)],
                )
            )
        self._tables = {number: _table_of(part) for number, part in parts.items()}
        self._sizes = now


def _table_of(parts: list[tuple[Array, Array, Array, Array]]) -> EditTable:
    """A table of frames in which, of two edits of a document, that of the earlier step stands."""
    table = EditTable()
    order, keys, counts, changes = (np.concatenate(column) for column in zip(*parts, strict=True))
    begin = np.cumsum(counts) - counts
    by_step = np.lexsort((order[:, 1], order[:, 0]))
    rows = ranges(begin[by_step], counts[by_step])
    table.add_many(keys[by_step], counts[by_step], changes[rows])
    return table


def _check_made_alike(
    path: Path, generation: int, there: dict[str, Any], now: dict[str, Any]
) -> None:
    if there["prior"] != now["prior"]:
        raise ValueError(
            f"generation {generation} of the journal {path} was made with another prior (or the "
            "same in another precision); give the run a new journal, or, to go on with the next "
            f"generation, set prior.generation = {generation}"
        )
    for name, value in now["policy"].items():
        if there["policy"].get(name) != value:
            raise ValueError(
                f"generation {generation} of the journal {path} was made with "
                f"{name}={there['policy'].get(name)!r} in its policy, now it is {value!r}; give "
                "the run a new journal"
            )


def _close_at_exit(store: weakref.ref[JournalStore]) -> None:
    alive = store()
    if alive is not None:
        alive.close()
