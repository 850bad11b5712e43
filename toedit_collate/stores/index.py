"""Arrays that grow, and the index that finds a document's row by its key."""

from __future__ import annotations

import numpy as np

from .ragged import Array

# Keys in ascending order, and the row of each.
_Part = tuple[Array, Array]
# Two parts are merged unless the later one is this many times smaller.
_FAN_OUT = 8


class KeyIndex:
    """Maps keys to rows. If a key was added twice, its first row counts.

    It takes 12 bytes a key. Sorted parts are merged as they grow, so adding n keys costs n log n.
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self.num_rows = 0

    def add(self, keys: Array) -> None:
        """Add (n,) uint64 keys. They get the next n rows."""
        if not len(keys):
            return
        end = self.num_rows + len(keys)
        rows = np.arange(self.num_rows, end, dtype=np.int32 if end < 2**31 else np.int64)
        self.num_rows = end
        parts = self._parts
        parts.append(_sorted(keys, rows))
        while len(parts) > 1 and _FAN_OUT * len(parts[-1][0]) > len(parts[-2][0]):
            (keys, rows), (more_keys, more_rows) = parts[-2:]
            parts[-2:] = [
                _sorted(np.concatenate([keys, more_keys]), np.concatenate([rows, more_rows]))
            ]

    def add_new(self, keys: Array) -> Array:
        """Add the keys that are not in the index yet, each once. Returns which: (n,) bool."""
        new = np.flatnonzero(self.find(keys) < 0)
        new = np.sort(new[np.unique(keys[new], return_index=True)[1]])  # the first of each key
        self.add(keys[new])
        is_new = np.zeros(len(keys), bool)
        is_new[new] = True
        return is_new

    def find(self, keys: Array) -> Array:
        """The rows of (m,) keys, (m,) int64; -1: not in the index."""
        found = np.full(len(keys), -1, np.int64)
        for there, rows in self._parts:
            missing = np.flatnonzero(found < 0)
            place = np.minimum(there.searchsorted(keys[missing]), len(there) - 1)
            found[missing] = np.where(there[place] == keys[missing], rows[place], -1)
        return found


def _sorted(keys: Array, rows: Array) -> _Part:
    """Sort by key. Of equal keys, keep the first row."""
    keys, first = np.unique(keys, return_index=True)
    return keys, rows[first]


class GrowingArray:
    """An array, `values`, to append rows to. Its buffer doubles when it is full."""

    def __init__(self, first: Array) -> None:
        self._buffer = self.values = first

    def append(self, rows: Array) -> None:
        """Add rows; they are copied."""
        size, end = len(self.values), len(self.values) + len(rows)
        if end > len(self._buffer):
            room = max(end, 2 * size)
            self._buffer = np.empty((room, *self._buffer.shape[1:]), self._buffer.dtype)
            self._buffer[:size] = self.values
        self._buffer[size:end] = rows
        self.values = self._buffer[:end]
