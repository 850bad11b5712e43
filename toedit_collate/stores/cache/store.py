"""DecisionCache: a bounded store of decisions, in memory or in a shared folder."""

from __future__ import annotations

import functools
import logging
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from ...distributed import rank
from ...policy import EditPolicy
from ..index import KeyIndex
from ..ragged import Array
from ..writing import WriteBehind
from .decisions import Decisions, list_identities, list_segments
from .identity import Identity, find_identity
from .prior import CachedPrior

logger = logging.getLogger("toedit_collate")

# New decisions are written as a segment when they take so many bytes.
SEGMENT_BYTES = 2**24
# A job that only fills a cache writes larger segments: a corpus of 1 T tokens has terabytes of
# decisions, which would otherwise be hundreds of thousands of files.
FILLED_SEGMENT_BYTES = 2**28
# `max_bytes` of a cache to be filled: training without the prior needs all documents.
NO_LIMIT = 2**62


class DecisionCache(WriteBehind):
    """What a frozen prior decided about documents, so that later epochs need no forward pass.

    For each document, it stores which tokens are selected or dropped, and the candidates for each
    selected token; the draws are made again in each epoch. With a path, the cache is a folder with
    a sub-folder of memory-mapped safetensors files for each prior, policy and tokenizer. Any number
    of processes may write to it, each its own files, and each can read all.

    Args:
        path: of the folder, made when something is written; None: keep the decisions in memory.
        max_bytes: this process stops adding decisions at this size.
        fill_only: read nothing from the folder, and write few, large files: for many processes that
            go through different documents once. Duplicate decisions do no harm.

    Raises:
        NotADirectoryError: `path` is a file.
        ValueError: `max_bytes` is not a positive whole number.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int = 2**30,
        fill_only: bool = False,
    ) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise ValueError(
                f"max_bytes must be a positive whole number, got {max_bytes!r}; write 2**30 for "
                "one GiB"
            )
        self.path = None if path is None else Path(path).absolute()
        if self.path is not None and os.path.lexists(self.path) and not self.path.is_dir():
            raise NotADirectoryError(f"a decision cache must be a folder, got the file {path}")
        super().__init__()
        self.max_bytes = max_bytes
        self.fill_only = fill_only
        self.identity: Identity | None = None  # of the decisions that count now
        self._can_write = True
        self._forget()

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else repr(str(self.path))
        return f"DecisionCache({where}, max_bytes={self.max_bytes})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers get no decisions: only the main process needs them.
        make = functools.partial(
            DecisionCache, self.path, max_bytes=self.max_bytes, fill_only=self.fill_only
        )
        return make, ()

    def open(self, identity: Identity) -> None:
        """Set the prior, policy and tokenizer that decide from now on, and read the folder.

        Decisions of another identity are forgotten in memory, and stay in a sub-folder on the disk.
        """
        now = self.identity
        if now is not None and (identity is now or identity.digest == now.digest):
            return
        if now is not None:
            self._write_or_report()
        self._forget()
        self.identity = identity
        if not self.fill_only:
            self._read_new()

    def _forget(self) -> None:
        self._is_full = False
        # Written segments and new decisions. The index counts the documents of one block after
        # another.
        self._index = KeyIndex()
        self._blocks: list[Decisions] = []
        self._num_settled = 0  # the first blocks need no more writing
        self._read: set[str] = set()  # names of segments

    def _read_new(self) -> None:
        if self.path is None or self.identity is None:
            return
        folder = self.path / self.identity.digest
        new = [name for name in list_segments(folder) if name not in self._read]
        blocks = [Decisions.read(folder / name)[1] for name in new]
        self._read.update(new)
        if blocks:
            self._index.add(np.concatenate([block.keys for block in blocks]))
            self._blocks += blocks
            self._num_settled = len(self._blocks)

    @property
    def nbytes(self) -> int:
        """Bytes of all decisions, written or not."""
        return sum(block.nbytes for block in self._blocks)

    @property
    def num_documents(self) -> int:
        """Known documents; a document counts once for each process that decided it."""
        return self._index.num_rows

    def look_up(self, keys: Array, checks: Array) -> tuple[Array, Decisions]:
        """Find the decisions about n documents, by (n,) uint64 keys, which may repeat, and checks.

        Returns:
            (n,) bool, which documents are known; and their decisions, in the order of `keys`.
        """
        rows = self._index.find(keys)
        first = np.cumsum([0, *map(len, self._blocks)])
        block_of = np.searchsorted(first, rows, side="right") - 1
        known = np.zeros(len(keys), bool)
        places, parts = [], []
        for number in np.unique(block_of[rows >= 0]):
            block = self._blocks[number]
            at = np.flatnonzero(block_of == number)
            # Another document can have the same key.
            at = at[block.checks[rows[at] - first[number]] == checks[at]]
            known[at] = True
            places.append(at)
            parts.append(block.select(rows[at] - first[number]))
        decisions = Decisions.concatenate(parts)
        if len(parts) > 1:
            decisions = decisions.select(np.argsort(np.concatenate(places)))
        return known, decisions

    def add(self, decisions: Decisions) -> None:
        """Store decisions of new documents."""
        if self._is_full:
            return
        # Nothing is evicted. Training reads its documents in cycles, so a cache that evicts the
        # oldest ones never knows a document; one that stops adding always knows its share.
        if self.nbytes + decisions.nbytes > self.max_bytes:
            self._is_full = True
            logger.warning(
                f"the decision cache is full (max_bytes={self.max_bytes}, {self.num_documents} "
                "documents): other documents are scored in every epoch; raise max_bytes"
            )
            return
        blocks = self._blocks
        blocks.append(decisions.select(np.flatnonzero(self._index.add_new(decisions.keys))))
        # Merging keeps few blocks: adding n documents costs n log n.
        while len(blocks) > self._num_settled + 1 and 2 * len(blocks[-1]) > len(blocks[-2]):
            blocks[-2:] = [Decisions.concatenate(blocks[-2:])]
        enough = FILLED_SEGMENT_BYTES if self.fill_only else SEGMENT_BYTES
        num_bytes = sum(block.nbytes for block in blocks[self._num_settled :])
        if self._has_pending() and num_bytes >= enough:
            self._write_or_report()

    def refresh(self) -> None:
        """Read what other processes have written, unless this one only fills."""
        if self.path is not None and not self.fill_only:
            self._write_or_report()
            self._num_settled = len(self._blocks)
            self._read_new()

    def flush(self) -> None:
        """Write what is not written yet, if there is a folder; an OSError keeps it in memory."""
        if not self._has_pending():
            return
        assert self.path is not None
        assert self.identity is not None
        folder = self.path / self.identity.digest
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank-{rank():05d}.{uuid.uuid4().hex}.safetensors"
        Decisions.concatenate(self._blocks[self._num_settled :]).write(path, self.identity)
        self._read.add(path.name)
        # From now on, the decisions are mapped from the file.
        self._blocks[self._num_settled :] = [Decisions.read(path)[1]]
        self._num_settled = len(self._blocks)

    def prior(self, policy: EditPolicy | None = None, prior: str | None = None) -> CachedPrior:
        """A replacement for the prior, for a run whose documents are all in the cache.

        If the cache was filled with several policies or priors, pass the policy, and the beginning
        of the prior's fingerprint or sub-folder. A ValueError lists what the cache holds.
        """
        held = [] if self.identity is None else [self.identity]
        if self.path is not None:
            self.flush()
            held = list_identities(self.path)
        return CachedPrior(find_identity(held, repr(self), policy, prior))

    def _has_pending(self) -> bool:
        return self.path is not None and len(self._blocks) > self._num_settled

    def _leave_to_parent(self) -> None:
        self._num_settled = len(self._blocks)

    def _write_or_report(self) -> None:
        if self._can_write:
            super()._write_or_report()

    def _report(self, error: Exception) -> None:
        # A cache only saves time, so the training run continues.
        self._can_write = False
        logger.warning(
            f"the decision cache {self.path} can't be written ({error}), so it stays in memory"
        )
