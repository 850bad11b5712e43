"""Journal: what was changed in each generation, so that it can be replayed."""

from __future__ import annotations

import logging
import os
import uuid
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...distributed import rank
from ..ragged import Array
from ..writing import WriteBehind
from .files import STEP_COLUMNS, Frame, JournalWriter, list_files, read_valid
from .replay import EditTable, Found, Texts, keys_of

logger = logging.getLogger("toedit_collate")

# Edits are written before a checkpoint (later ones are void if the run is resumed from it), or when
# there are so many batches.
MAX_PENDING_BATCHES = 2**13

# The journals of this process, by folder.
JOURNALS: weakref.WeakValueDictionary[str, Journal] = weakref.WeakValueDictionary()


class Journal(WriteBehind):
    """A record of every token that was changed, by generation, in a folder.

    Give it to a `ToEditCollator`, and each document has one edit per generation (Eq. 3 of
    arXiv:2412.14689): generation n edits the document as generation n-1 left it. Later epochs of a
    generation replay its edit without a forward pass.

    Generations count from 1, the one that an unswapped prior edits; 0 is the source. Documents are
    found by the content of their source, in any order of the data, batch and rank. Each rank writes
    its own files and reads all files. Reading takes no lock and writes nothing, so a journal can be
    read while a run writes it, and from a read-only folder.

    In one process, all journals of one folder are one object, including pickled and copied ones.
    A NotADirectoryError is raised if the path is a file.
    """

    def __new__(cls, path: str | os.PathLike[str]) -> Journal:
        """The journal of that folder, if this process has one."""
        journal = JOURNALS.get(os.path.realpath(path))
        return super().__new__(cls) if journal is None else journal

    def __init__(self, path: str | os.PathLike[str]) -> None:
        folder = Path(path)
        if JOURNALS.get(os.path.realpath(path)) is self:
            return
        if os.path.lexists(folder) and not folder.is_dir():
            raise NotADirectoryError(f"path of a journal must be a folder, got the file {path}")
        super().__init__()
        self.path = folder.absolute()
        self.run_started = False  # whether `start_run` was called
        self._tables: dict[int, EditTable] = {}
        self._names: set[str] | None = None  # files that the tables hold; None: none were read
        self._writer: JournalWriter | None = None
        self._generation: int | None = None
        self._made_with: dict[str, Any] = {}
        self._run: dict[str, Any] = {"run": uuid.uuid4().hex, "attempt": 0, "resumed_at": 0}
        self._pending: list[Frame] = []
        JOURNALS[os.path.realpath(path)] = self

    def __repr__(self) -> str:
        return f"Journal({str(self.path)!r}, generations={self.generations})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Journal, (self.path,)

    @property
    def generations(self) -> list[int]:
        """Numbers of the generations that edited something."""
        self._read_new()
        return sorted(number for number, table in self._tables.items() if len(table))

    def replay(self, ids: Sequence[int], generation: int) -> list[int]:
        """A document as a generation trained on it: the edited ids, or `ids` if it was not edited.

        `ids` are those of the source document, as it was collated. Generation 0 is the source. A
        warning is given if no generation up to this one knows the document. A ValueError is raised
        if there is no such generation, or if the edits belong to another document.
        """
        revised, (_, key) = self.revise(ids, generation)[0], _tokens_and_key(ids)
        known = (self.look_up(key, n).known.any() for n in range(1, generation + 1))
        if generation > 0 and len(ids) > 1 and not any(known):
            warnings.warn(
                f"the journal {self.path} knows no document with these {len(ids)} tokens, so they "
                "are returned unchanged: the document was not trained on, nothing in it could be "
                "edited, or it was collated with other ids (template, truncation, special tokens)",
                stacklevel=2,
            )
        return revised.tolist()

    def revise(self, ids: Sequence[int], generation: int) -> tuple[Array, Array]:
        """As `replay`, with the place in `ids` of each remaining token: two (m,) int64."""
        self._check_generation(generation)
        tokens, key = _tokens_and_key(ids)
        texts = Texts.of(tokens, np.zeros(len(key), np.int64))
        self.bring_forward(texts, key, generation)
        left = ~texts.removed
        return texts.tokens[left], np.flatnonzero(left)

    def knows(self, ids: Sequence[int], generation: int) -> bool:
        """Whether a generation edited a document, even if no token changed."""
        self._check_generation(generation)
        _, key = _tokens_and_key(ids)
        return generation > 0 and bool(self.look_up(key, generation).known.any())

    def stats(self) -> dict[int, dict[str, float]]:
        """For each generation: `documents`, and their tokens.

        `tokens`, `scored`, `selected`, `changed` and `dropped` are numbers; `selected_share` and
        `changed_share` are shares of the scored tokens (Table 9). Each document counts once, or
        once for each rank that edited a copy of it in the same epoch.
        """
        self.flush()
        sums: dict[int, dict[str, float]] = {}
        for _, frame in read_valid(self.path):
            if not len(frame.keys):
                continue
            names = (*STEP_COLUMNS[1:], "dropped")
            of = sums.setdefault(frame.info["generation"], dict.fromkeys(names, 0))
            for name in STEP_COLUMNS[1:]:
                of[name] += int(frame.steps[name].sum())
            of["dropped"] += int((frame.changes[:, 2] < 0).sum())
        for of in sums.values():
            for name in ("selected", "changed"):
                of[f"{name}_share"] = of[name] / of["scored"] if of["scored"] else float("nan")
        return dict(sorted(sums.items()))

    def look_up(self, keys: Array, generation: int) -> Found:
        """The edits of n documents in one generation, by their (n,) uint64 keys."""
        return self._table(generation).look_up(keys)

    def bring_forward(self, texts: Texts, keys: Array, generation: int, *, since: int = 0) -> None:
        """Apply the generations after `since`, up to `generation`, to n documents in place.

        `keys` are those of the source documents, (n,) uint64. A ValueError is raised if the edits
        belong to other documents.
        """
        for number in range(since + 1, generation + 1):
            try:
                texts.replay(self.look_up(keys, number))
            except ValueError as error:
                raise ValueError(f"journal {self.path}, generation {number}: {error}") from error

    def last_attempt(self, run: str) -> int | None:
        """The number of a run's last attempt; None: it wrote nothing."""
        infos = [frame.info for _, frame in read_valid(self.path)]
        return max((info["attempt"] for info in infos if info["run"] == run), default=None)

    def refresh(self) -> None:
        """Read what other ranks have written."""
        self.flush()
        self._names = None
        self._tables.clear()

    def _table(self, generation: int) -> EditTable:
        if self._names is None:
            self._read_new()
        return self._tables.setdefault(generation, EditTable())

    def _read_new(self) -> None:
        if {file.path.name for file in list_files(self.path)} == self._names:
            return
        self.flush()
        # Listed before the files are read: what is written in between counts as new.
        names = {file.path.name for file in list_files(self.path)}
        parts: dict[int, list[tuple[int, Frame]]] = {}
        for of_rank, frame in read_valid(self.path):
            parts.setdefault(frame.info["generation"], []).append((of_rank, frame))
        self._tables = {number: EditTable.of(of) for number, of in parts.items()}
        self._names = names

    def _check_generation(self, generation: int) -> None:
        if generation != 0 and generation not in self.generations:
            raise ValueError(
                "generation must be 0 (the source) or one of the journal's, "
                f"{self.generations or 'none yet'}; got {generation!r} ({self.path})"
            )

    def start_run(self, run: str, *, attempt: int = 0, resumed_at: int = 0) -> None:
        """Set the run of training that writes from now on.

        `run` is the same on all ranks and after a resume, `attempt` counts the resumes. Earlier
        attempts become void from `resumed_at` on, the step of the checkpoint.
        """
        self.flush()
        self._run = {"run": run, "attempt": attempt, "resumed_at": resumed_at}
        self.run_started = True
        if attempt:
            # Before the first edit, so that every reader knows at once which edits are void.
            self._write(Frame.empty({"generation": 0, **self._run}))
        self.refresh()

    def start_generation(self, generation: int, prior: str, policy: dict[str, Any]) -> None:
        """Set the generation, from 1, that is recorded from now on; cheap if nothing has changed.

        `prior` is the fingerprint of the prior's weights, `policy` the record of the policy. A
        ValueError is raised if others made this generation, or if there are later ones.
        """
        made_with = {"prior": prior, "policy": policy}
        if (generation, made_with) == (self._generation, self._made_with):
            return
        self.close()
        for _, frame in read_valid(self.path):
            if len(frame.keys):
                self._check_may_continue(frame.info, generation, made_with)
        self._generation, self._made_with = generation, made_with

    def _check_may_continue(
        self, there: dict[str, Any], generation: int, made_with: dict[str, Any]
    ) -> None:
        if there["generation"] > generation:
            raise ValueError(
                f"the journal {self.path} already holds generation {there['generation']}, so "
                f"generation {generation} can't be edited any more; resume the run that wrote it "
                "(resume_from_checkpoint=True), or give this run a new journal"
            )
        if there["generation"] < generation:
            return
        if there["prior"] != made_with["prior"]:
            raise ValueError(
                f"generation {generation} of the journal {self.path} was made with another prior "
                "(or the same in another precision); give the run a new journal, or set "
                f"prior.generation = {generation} to start the next generation"
            )
        before, now = there["policy"], made_with["policy"]
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                raise ValueError(
                    f"generation {generation} of the journal {self.path} was made with {name}="
                    f"{before.get(name)!r} in its policy, but this run has {now.get(name)!r}; give "
                    "it a new journal"
                )

    def record(
        self, keys: Array, lengths: Array, counts: Array, changes: Array, step: int, **sums: int
    ) -> None:
        """Add the edits of n documents, made after `step` updates.

        Args:
            keys: (n,) uint64, of the source documents.
            lengths: (n,) int64, tokens of each.
            counts: (n,) int64, changes of each.
            changes: (c, 3), position, old and new token (-1: removed), in the document before this
                edit.
            step: number of updates before this batch.
            sums: `scored`, `selected` and `changed` tokens. By default, `changed` counts the
                changes to another token; it is lower if they also undo an earlier generation.

        Raises:
            BlockingIOError: another process writes the journal.
            OSError: it can't be written; the edits stay in memory.
        """
        if self._generation is None:
            raise RuntimeError("start_generation() comes before record()")
        if not len(keys):
            return
        self._table(self._generation).add(keys, counts, changes)
        row = {"step": step, "documents": len(keys), "tokens": int(lengths.sum())}
        row |= {"changed": int((changes[:, 2] >= 0).sum()), **sums}
        info = {"generation": self._generation, **self._made_with, **self._run}
        steps = {name: np.array([row[name]], np.int64) for name in STEP_COLUMNS}
        self._pending.append(Frame(info, keys, counts, changes, steps))
        if len(self._pending) >= MAX_PENDING_BATCHES:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet; raises as `record`."""
        if self._pending:
            self._write(Frame.joined(self._pending))
            self._pending = []

    def close(self) -> None:
        """Write everything, and let other processes write to the journal; raises as `record`."""
        self.flush()
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        self._generation = None

    def _has_pending(self) -> bool:
        return len(self._pending) > 0

    def _leave_to_parent(self) -> None:
        self._pending = []
        if self._writer is not None:
            self._writer.close()
        self._writer = self._generation = self._names = None
        self._tables.clear()

    def _report(self, error: Exception) -> None:
        num_documents = sum(len(frame.keys) for frame in self._pending)
        logger.error(
            f"the last edits of {num_documents} documents are not in the journal, because it "
            f"can't be written: {error}"
        )
        self._pending = []

    def _write(self, frame: Frame) -> None:
        try:
            if self._writer is None:
                self._writer = JournalWriter(self.path, rank())
            name = self._writer.write(frame)
        except BlockingIOError:
            raise
        except OSError as error:
            raise OSError(
                error.errno,
                f"the journal {self.path} can't be written ({error.strerror or error}); make room, "
                "or choose a writable folder, and resume the run from its last checkpoint",
            ) from error
        if self._names is not None:
            # Files that other processes wrote in the meantime are still unread.
            self._names = {name, *self._names}


def _tokens_and_key(ids: Sequence[int]) -> tuple[Array, Array]:
    """Of one document, (n,) int64 and (1,) uint64; an empty document has no key."""
    tokens = np.asarray(ids)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise ValueError(
            f"ids must be the token ids of one document, got an array of shape {tokens.shape} "
            f"and type {tokens.dtype}; pass a list of whole numbers"
        )
    tokens = tokens.astype(np.int64)
    return tokens, keys_of(tokens, [len(tokens)] if len(tokens) else [])
