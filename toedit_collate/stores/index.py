"""KeyIndex: where a document stands, by its key."""

from __future__ import annotations

import numpy as np

from .ragged import Array

# Keys in ascending order, and the row of each.
_Part = tuple[Array, Array]
# A part is merged with the one before unless it is so many times smaller.
_FAN_OUT = 8


class KeyIndex:
    """Finds the rows of keys that were added; of a key that was added twice, the first row.

    It takes 12 bytes a key. Sorted parts are merged as they grow, so that there are few of them, at
    a cost for each key that grows as the logarithm of all.

    Example:
        >>> index = KeyIndex()
        >>> index.add(np.array([7, 5], np.uint64))
        >>> index.add(np.array([9, 7], np.uint64))
        >>> index.find(np.array([5, 7, 8, 9], np.uint64)).tolist()
        [1, 0, -1, 2]
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self.num_rows = 0

    def add(self, keys: Array) -> None:
        """Add (n,) uint64 keys; they get the next rows."""
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

    def find(self, keys: Array) -> Array:
        """The rows of (m,) keys, (m,) int64; -1 where there is none."""
        if not self._parts:
            return np.full(len(keys), -1, np.int64)
        found = _find_in(self._parts[0], keys)
        for part in self._parts[1:]:
            missing = np.flatnonzero(found < 0)
            found[missing] = _find_in(part, keys[missing])
        return found


def _find_in(part: _Part, keys: Array) -> Array:
    there, rows = part
    place = np.minimum(there.searchsorted(keys), len(there) - 1)
    return np.where(there[place] == keys, rows[place], np.int64(-1))


def _sorted(keys: Array, rows: Array) -> _Part:
    """By key; of equal keys, the first row counts."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    return keys[is_first], rows[order[is_first]]
