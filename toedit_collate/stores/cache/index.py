"""KeyIndex: in which of many blocks a document stands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .decisions import Array

# Keys in ascending order, and of each the number of its block, and its row there.
_Part = tuple[Array, Array, Array]


class KeyIndex:
    """Finds documents among the blocks of a cache, however many there are.

    It takes 16 bytes a document. Parts are merged as they grow, so that there are few, at a cost
    for each document that grows as the logarithm of all.
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []  # each less than half as long as the one before
        self._num_blocks = 0

    def add(self, keys_of_blocks: Sequence[Array]) -> None:
        """Add blocks, by their (n,) uint64 keys; they get the next numbers."""
        if not keys_of_blocks:
            return
        sizes = [len(keys) for keys in keys_of_blocks]
        numbers = np.arange(self._num_blocks, self._num_blocks + len(sizes), dtype=np.int32)
        rows = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        part = _sorted((np.concatenate(keys_of_blocks), np.repeat(numbers, sizes), rows))
        self._num_blocks += len(sizes)
        self._parts.append(part)
        while len(self._parts) > 1 and 2 * len(self._parts[-1][0]) > len(self._parts[-2][0]):
            one, other = self._parts[-2:]
            columns = (np.concatenate(pair) for pair in zip(one, other, strict=True))
            self._parts[-2:] = [_sorted((next(columns), next(columns), next(columns)))]

    def find(self, keys: Array) -> tuple[Array, Array]:
        """Where documents stand: for (m,) keys, the block, -1 where there is none, and the row."""
        block_of = np.full(len(keys), -1)
        row_of = np.zeros(len(keys), np.int64)
        for there, blocks, rows in self._parts:
            if not len(there):
                continue
            place = np.minimum(np.searchsorted(there, keys), len(there) - 1)
            found = (there[place] == keys) & (block_of < 0)
            block_of[found], row_of[found] = blocks[place[found]], rows[place[found]]
        return block_of, row_of


def _sorted(part: _Part) -> _Part:
    """By key; of a document that stands in two blocks, the first counts."""
    order = np.argsort(part[0], kind="stable")
    keys = part[0][order]
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    order = order[is_first]
    return keys[is_first], part[1][order], part[2][order]
