"""Journal: what was changed in each generation, so that it can be replayed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .frames import Array, arrow
from .keys import keys_of
from .replay import Texts, replay_generation
from .store import store_of
from .table import Found


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
        self._store = store_of(self.path)

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
        return generation > 0 and bool(self.look_up(keys, generation).known.any())

    def stats(self) -> dict[int, dict[str, float]]:
        """What each generation did.

        Each document counts once, but for one that stands in the data several times, if several
        ranks edited it in the same epoch: it counts for each of them.

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

    def bring_forward(self, texts: Texts, keys: Array, generation: int, *, since: int = 0) -> None:
        """Bring n documents from their state after `since` (0: the source) to that after another.

        Args:
            texts: the documents, changed in place.
            keys: (n,) uint64, of the source documents.
            generation: whose edit is the last.
            since: the generation whose edit they have.

        Raises:
            ValueError: the edits belong to other documents.
        """
        for number in range(since + 1, generation + 1):
            try:
                replay_generation(texts, self.look_up(keys, number))
            except ValueError as error:
                raise ValueError(f"journal {self.path}, generation {number}: {error}") from error

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


def _key_of(tokens: Array) -> Array:
    return keys_of(torch.from_numpy(tokens), [len(tokens)] if len(tokens) else [])
