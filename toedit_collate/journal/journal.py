"""Journal: what was changed in each generation, so that it can be replayed."""

from __future__ import annotations

import atexit
import contextlib
import os
import time
import uuid
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..sharding import rank
from ..uniforms import document_keys
from .files import JournalWriter, file_of, read_valid, sizes
from .frames import STEP_COLUMNS, Array, arrow
from .pending import PendingEdits
from .replay import Texts, replay_generation
from .table import EditTable, Found

# Edits are written when there are so many documents, or after so many seconds; and, by
# `ToEditCallback`, before each checkpoint.
MAX_PENDING_DOCUMENTS = 50_000
MAX_PENDING_SECONDS = 60.0

_STORES: weakref.WeakValueDictionary[Path, _Store] = weakref.WeakValueDictionary()


class Journal:
    """A record of every token that was changed, by generation, in a folder.

    Give it to a `ToEditCollator`, and each document has one edit per generation (Eq. 3 of
    arXiv:2412.14689): before generation n edits a document, it is brought to its state after
    generation n-1; later epochs of generation n replay the edit, without a forward pass.

    Generations count from 1, the one that an unswapped prior edits; 0 is the source. Documents are
    known by the content of their source, so a journal does not depend on the order of the data, on
    batches or on ranks. Each rank writes files of its own, and reads all.

    Args:
        path: of the folder; made when the first edit is written.

    Raises:
        ImportError: pyarrow is not installed.
        NotADirectoryError: `path` is a file.

    Example:
        >>> journal = Journal("run/journal")  # doctest: +SKIP
        >>> collator = ToEditCollator(prior, journal=journal)  # doctest: +SKIP
        >>> journal.replay(source_ids, generation=1)  # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        arrow()
        self.path = Path(path).absolute()
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"path of a journal must be a folder, got the file {path}")
        # Journals of one path in one process know the same, written yet or not.
        store = _STORES.get(self.path)
        if store is None:
            store = _STORES[self.path] = _Store(self.path)
        self._store = store

    def __repr__(self) -> str:
        return f"Journal({str(self.path)!r}, generations={self.generations})"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    @property
    def generations(self) -> list[int]:
        """Numbers of the generations that edited something."""
        return self._store.generations()

    def replay(self, ids: Sequence[int], generation: int) -> list[int]:
        """A document as a generation trained on it.

        Args:
            ids: token ids of the source document, as it was collated.
            generation: its number; 0 gives the source back.

        Raises:
            ValueError: there is no such generation, or the edits belong to another document.

        Returns:
            The edited ids; as they came where no generation edited the document.
        """
        return self.revise(ids, generation)[0].tolist()

    def revise(self, ids: Sequence[int], generation: int) -> tuple[Array, Array]:
        """As `replay`, with the place in `ids` of each token that is left: two (m,) int64."""
        self._check_generation(generation)
        tokens = np.asarray(ids, dtype=np.int64)
        if tokens.ndim != 1:
            raise ValueError(
                f"ids must be the token ids of one document, got an array of shape {tokens.shape}"
            )
        texts = Texts.of(tokens, np.zeros(min(len(tokens), 1), np.int64))
        self.bring_forward(texts, _key_of(tokens), generation)
        return texts.tokens[~texts.removed], np.flatnonzero(~texts.removed)

    def knows(self, ids: Sequence[int], generation: int) -> bool:
        """Whether a generation edited a document, changed or not."""
        self._check_generation(generation)
        keys = _key_of(np.asarray(ids, dtype=np.int64))
        return generation > 0 and bool(self.look_up(keys, generation).known.all())

    def stats(self) -> dict[int, dict[str, float]]:
        """What each generation did, every document counted once.

        For each generation: `documents`, `tokens` of them, `scored`, `selected`, `changed` and
        `dropped` tokens, `selected_share` and `changed_share` of the scored ones (Table 9).
        """
        return self._store.stats()

    def flush(self) -> None:
        """Write what was not written yet."""
        self._store.flush()

    def close(self) -> None:
        """Write everything, and let other processes write to the journal."""
        self._store.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What follows serves the collator and the callback.

    def start_run(self, run: str, *, attempt: int = 0, resumed_at: int = 0) -> None:
        """Say which run of training writes from now on.

        Args:
            run: its identity, the same on all ranks and after it was resumed.
            attempt: how often the run was resumed.
            resumed_at: step of the checkpoint. What earlier attempts wrote of later steps is void
                from now on.
        """
        self._store.start_run(run, attempt, resumed_at)

    @property
    def run_started(self) -> bool:
        """Whether `start_run` was called."""
        return self._store.run_started

    def last_attempt(self, run: str) -> int | None:
        """The number of a run's last attempt; None: it wrote nothing."""
        return self._store.last_attempt(run)

    def start_generation(self, generation: int, prior: str, policy: dict[str, Any]) -> None:
        """Say what is recorded from now on, if it is not known yet.

        Args:
            generation: its number, from 1.
            prior: fingerprint of the prior's weights.
            policy: of the edit, as JSON.

        Raises:
            ValueError: another prior or policy made this generation, or there are later ones.
        """
        self._store.start_generation(generation, prior, policy)

    def refresh(self) -> None:
        """Read what other ranks have written."""
        self._store.refresh()

    def look_up(self, keys: Array, generation: int) -> Found:
        """The edits that one generation made of n documents, by their (n,) uint64 keys."""
        return self._store.table(generation).look_up(keys)

    def bring_forward(self, texts: Texts, keys: Array, generation: int) -> Array:
        """Bring n source documents to their state after `generation`, in place.

        Returns:
            (n,) bool, which of them that generation edited.
        """
        known = np.zeros(len(keys), bool)
        for number in range(1, generation + 1):
            found = self.look_up(keys, number)
            known = found.known
            try:
                replay_generation(texts, found)
            except ValueError as error:
                raise ValueError(f"journal {self.path}, generation {number}: {error}") from error
        return known

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
            sums: `scored` and `selected` tokens.
        """
        self._store.record(keys, lengths, counts, changes, step, sums)

    def _check_generation(self, generation: int) -> None:
        if isinstance(generation, bool) or not isinstance(generation, int):
            raise TypeError(f"generation must be a whole number, got {generation!r}")
        if generation < 0 or (generation > 0 and generation not in self.generations):
            held = self.generations
            raise ValueError(
                f"generation must be 0 (the source) or one of the journal's, {held or 'none yet'}; "
                f"got {generation} ({self.path})"
            )


class _Store:
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
        atexit.register(_flush_at_exit, weakref.ref(self))

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # __init__ did not get far
            self.close()

    def start_run(self, run: str, attempt: int, resumed_at: int) -> None:
        self.flush()
        self._run = {"run": run, "attempt": attempt, "resumed_at": resumed_at}
        self.run_started = True
        if attempt:
            # On the disk before the first edit: from here on, what it says is void is void.
            with contextlib.closing(self._open_writer(0)) as writer:
                writer.append(PendingEdits().as_frame({"generation": 0, **self._run}))
        self.refresh()

    def last_attempt(self, run: str) -> int | None:
        attempts = [f.info["attempt"] for _, f, _ in read_valid(self._path) if f.info["run"] == run]
        return max(attempts, default=None)

    def start_generation(self, generation: int, prior: str, policy: dict[str, Any]) -> None:
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
                    f"{generation} can't be edited any more; give the run a new journal, or resume "
                    "the run that wrote it (resume_from_checkpoint=True)"
                )
            if there == generation:
                _check_made_alike(self._path, generation, frame.info, made_with)
        self._generation, self._made_with = generation, made_with

    def generations(self) -> list[int]:
        self._load_changed()
        return sorted(number for number, table in self._tables.items() if len(table))

    def table(self, generation: int) -> EditTable:
        if self._sizes is None:
            self._load_changed()
        return self._tables.setdefault(generation, EditTable())

    def stats(self) -> dict[int, dict[str, float]]:
        self.flush()
        sums: dict[int, dict[str, float]] = {}
        for _, frame, holds in read_valid(self._path):
            if not holds.any():
                continue
            of = sums.setdefault(
                frame.info["generation"],
                dict.fromkeys((*STEP_COLUMNS[1:], "changed", "dropped"), 0),
            )
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
        self.flush()
        self._sizes = None
        self._tables.clear()

    def flush(self) -> None:
        self._last_write = time.monotonic()
        if not len(self._pending) or os.getpid() != self._pid:
            return
        assert self._generation is not None
        if self._writer is None:
            self._writer = self._open_writer(self._generation)
        info = {"generation": self._generation, **self._made_with, **self._run}
        self._writer.append(self._pending.as_frame(info))
        self._pending = PendingEdits()
        if self._sizes is not None:
            self._sizes = sizes(self._path)

    def close(self) -> None:
        self.flush()
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        self._generation = None

    def _open_writer(self, generation: int) -> JournalWriter:
        return JournalWriter(file_of(self._path, generation, rank()))

    def _load_changed(self) -> None:
        """Read the files if another process has written to them."""
        now = sizes(self._path)
        if now == self._sizes:
            return
        self.flush()
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
        self._sizes = sizes(self._path)


def _table_of(parts: list[tuple[Array, Array, Array, Array]]) -> EditTable:
    """A table of frames in which, of two edits of a document, that of the earlier step stands."""
    table = EditTable()
    order, keys, counts, changes = (np.concatenate(column) for column in zip(*parts, strict=True))
    begin = np.cumsum(counts) - counts
    by_step = np.lexsort((order[:, 1], order[:, 0]))
    rows = np.concatenate(
        [np.arange(b, b + n) for b, n in zip(begin[by_step], counts[by_step], strict=True) if n]
        or [np.zeros(0, np.int64)]
    )
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


def _key_of(tokens: Array) -> Array:
    return keys_of(torch.from_numpy(tokens), [len(tokens)] if len(tokens) else [])


def keys_of(tokens: torch.Tensor, lengths: Sequence[int]) -> Array:
    """(n,) uint64 keys of n documents, whose tokens stand one after another."""
    of_each = torch.as_tensor(lengths)
    document = torch.arange(len(of_each)).repeat_interleave(of_each)
    position = torch.arange(len(tokens)) - (of_each.cumsum(0) - of_each)[document]
    return document_keys(tokens, document, position, len(of_each)).numpy().view(np.uint64)


def _flush_at_exit(store: weakref.ref[_Store]) -> None:
    alive = store()
    if alive is not None:
        alive.flush()
