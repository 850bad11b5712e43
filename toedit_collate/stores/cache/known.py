"""The decisions that one process knows: blocks to look documents up in, and those to be written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from ..index import KeyIndex
from ..ragged import Array
from .block import Block, DamagedCacheError, first_of_each
from .decisions import Decisions

logger = logging.getLogger("toedit_collate")


class KnownDecisions:
    """Blocks of decisions: those that are *held*, as they are, and those that are *pending*.

    Args:
        max_bytes: once there are so many, nothing more is added.
        held: blocks to begin with.
    """

    def __init__(self, max_bytes: int, held: Sequence[Block] = ()) -> None:
        self.max_bytes = max_bytes
        self.was_full = False
        self.nbytes = 0
        self.num_documents = 0
        self._held: list[Block] = []
        self._index = KeyIndex()  # of the documents of all blocks that are held, one after another
        self._first_rows = np.zeros(0, np.int64)  # of each of these blocks
        self._pending: list[Block] = []  # each less than half of the one before
        self.hold(held)

    @property
    def pending_bytes(self) -> int:
        """Bytes of what was added and is not held."""
        return sum(block.nbytes for block in self._pending)

    def hold(self, blocks: Sequence[Block]) -> None:
        """Take in blocks that stay as they are; they may know documents that are known."""
        if not blocks:
            return
        sizes = np.cumsum([0, *map(len, blocks)])
        first_rows = self._index.num_rows + sizes[:-1]
        self._held += blocks
        self._first_rows = np.concatenate([self._first_rows, first_rows])
        self._index.add(np.concatenate([block.keys for block in blocks]))
        self.nbytes += sum(block.nbytes for block in blocks)
        self.num_documents += sum(map(len, blocks))

    def look_up(self, keys: Array, checks: Array, vocab_size: int) -> tuple[Array, Decisions]:
        """See `DecisionCache.look_up`."""
        block_of, row_of = self._find(keys)
        known = np.zeros(len(keys), bool)
        places, parts = [], []
        for number in np.unique(block_of[block_of >= 0]):
            at = np.flatnonzero(block_of == number)
            held = len(self._held)
            block = self._held[number] if number < held else self._pending[number - held]
            # A document of another content has the key: its decisions are not those asked for.
            at = at[block.checks[row_of[at]] == checks[at]]
            known[at] = True
            places.append(at)
            parts.append(_checked(block.take(row_of[at]), block, vocab_size))
        decisions = Decisions.concatenate(parts)
        if len(parts) > 1:
            decisions = decisions.select(np.argsort(np.concatenate(places)))
        return known, decisions

    def _find(self, keys: Array) -> tuple[Array, Array]:
        """The number of each key's block, those that are pending last, and its row; -1: none."""
        rows = self._index.find(keys)
        block_of = np.searchsorted(self._first_rows, rows, side="right") - 1
        row_of = rows.copy()
        is_held = rows >= 0
        row_of[is_held] -= self._first_rows[block_of[is_held]]
        for number, block in enumerate(self._pending, len(self._held)):
            found, rows = block.find(keys)
            found &= block_of < 0
            block_of[found], row_of[found] = number, rows[found]
        return block_of, row_of

    def add(self, decisions: Decisions) -> None:
        """Add documents that are not known yet, as long as there is room."""
        if self.was_full:
            return
        is_new = self._find(decisions.keys)[0] < 0
        block = self._admitted(first_of_each(decisions.select(np.flatnonzero(is_new))))
        if not len(block):
            return
        pending = self._pending
        pending.append(block)
        self.num_documents += len(block)
        self.nbytes += block.nbytes
        # Few blocks are kept, at a cost for each document that grows as the logarithm of all.
        while len(pending) > 1 and 2 * len(pending[-1]) > len(pending[-2]):
            self.nbytes -= pending[-2].nbytes + pending[-1].nbytes
            pending[-2:] = [Block.merge(pending[-2:])]
            self.nbytes += pending[-1].nbytes

    def _admitted(self, decisions: Decisions) -> Block:
        """The decisions, or those of as many documents as there is room for."""
        # Nothing is evicted for them. Training reads its documents in cycles: the one that was
        # used longest ago is the very one that comes next, so that a cache which evicts it would
        # never know a document. One that stops taking in knows the same share in each epoch.
        block = Block.pack(decisions)
        room = self.max_bytes - self.nbytes
        if block.nbytes <= room:
            return block
        self.was_full = True
        fitting = int(np.searchsorted(np.cumsum(block.bytes_of_documents), room, side="right"))
        logger.warning(
            "the decision cache is full (max_bytes=%d, %d documents): others are scored in every "
            "epoch; raise max_bytes to keep more",
            self.max_bytes,
            self.num_documents + fitting,
        )
        return Block.pack(block.take(np.arange(fitting)))

    def settle(self, write: Callable[[Block], Block] | None = None) -> None:
        """Hold what is pending, as one block; or what `write` returns for that block."""
        if not self._pending:
            return
        block = Block.merge(self._pending)
        if write is not None:
            block = write(block)
        for old in self._pending:
            self.nbytes -= old.nbytes
            self.num_documents -= len(old)
        self._pending = []
        self.hold([block])


def _checked(decisions: Decisions, block: Block, vocab_size: int) -> Decisions:
    """Raise at what a mapped file can't have held when it was written."""
    if len(decisions.ids) and decisions.ids.max() >= vocab_size:
        raise DamagedCacheError(
            f"{block.source} is damaged: it holds the candidate {decisions.ids.max()}, which is "
            f"not in the prior's vocabulary, [0, {vocab_size}); delete it, and its documents are "
            "decided anew"
        )
    return decisions
