"""The edits of one generation in memory: looked up by key, many documents at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..ragged import ranges
from .frames import Array

# Edits of this run gather in a dictionary; at so many, or at this share of the whole, they are
# sorted in with the others.
MAX_RECENT = 8192
MAX_RECENT_SHARE = 1 / 16
_NO_CHANGES = np.zeros((0, 3), np.int32)  # of most documents


@dataclass(frozen=True)
class Found:
    """What a table knows of n documents.

    Attributes:
        known: (n,) bool, whether the generation edited the document.
        document: (c,) int64, in [0, n): of each change.
        changes: (c, 3) int64, position, old and new token.
    """

    known: Array
    document: Array
    changes: Array


class EditTable:
    """Edits by document key; of two edits of one document, the first stands.

    It takes 16 bytes a document and 12 a change.
    """

    def __init__(self) -> None:
        self._keys = np.zeros(0, np.uint64)
        self._begin = np.zeros(1, np.int64)  # of the changes of each key, and the end of the last
        self._changes = _NO_CHANGES
        self._recent: dict[int, Array] = {}

    def __len__(self) -> int:
        return len(self._keys) + len(self._recent)

    @property
    def num_changes(self) -> int:
        """Changed and removed tokens of all documents."""
        return len(self._changes) + sum(map(len, self._recent.values()))

    def add(self, key: int, changes: Array) -> None:
        """Add one document's (c, 3) changes."""
        if self._is_sorted_in(key):
            return
        self._recent.setdefault(key, changes.astype(np.int32) if len(changes) else _NO_CHANGES)
        if len(self._recent) > max(MAX_RECENT, MAX_RECENT_SHARE * len(self._keys)):
            self._sort_in_recent()

    def add_many(self, keys: Array, counts: Array, changes: Array) -> None:
        """Add the changes of many documents; they stand behind those that are there.

        Args:
            keys: (n,) uint64.
            counts: (n,) int64, changes of each.
            changes: (c, 3), of all, one after the other.
        """
        self._sort_in_recent()
        self._sort_in(keys, counts, changes)

    def _is_sorted_in(self, key: int) -> bool:
        place = np.searchsorted(self._keys, np.uint64(key))
        return bool(place < len(self._keys) and self._keys[place] == key)

    def _sort_in_recent(self) -> None:
        if not self._recent:
            return
        recent, self._recent = self._recent, {}
        self._sort_in(
            np.fromiter(recent, np.uint64, len(recent)),
            np.fromiter(map(len, recent.values()), np.int64, len(recent)),
            np.concatenate(list(recent.values())),
        )

    def _sort_in(self, keys: Array, counts: Array, changes: Array) -> None:
        keys = np.concatenate([self._keys, keys])
        counts = np.concatenate([np.diff(self._begin), counts])
        begin = np.cumsum(counts) - counts
        changes = np.concatenate([self._changes, changes.astype(np.int32)])
        # unique() gives the first place of each key, so that the first edit stands.
        self._keys, first = np.unique(keys, return_index=True)
        counts = counts[first]
        self._changes = changes[ranges(begin[first], counts)]
        self._begin = np.concatenate([[0], np.cumsum(counts)])

    def look_up(self, keys: Array) -> Found:
        """Find the edits of n documents, (n,) uint64 keys."""
        known = np.zeros(len(keys), bool)
        counts = np.zeros(len(keys), np.int64)
        changes = _NO_CHANGES
        if len(self._keys):
            place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            known = self._keys[place] == keys
            counts = np.where(known, self._begin[place + 1] - self._begin[place], 0)
            changes = self._changes[ranges(self._begin[place], counts)]
        document = np.repeat(np.arange(len(keys)), counts)
        missed = np.flatnonzero(~known) if self._recent else ()
        more = [(row, self._recent.get(int(keys[row]))) for row in missed]
        recent = [(row, edit) for row, edit in more if edit is not None]
        if recent:
            known[[row for row, _ in recent]] = True
            changes = np.concatenate([changes, *(edit for _, edit in recent)])
            document = np.concatenate(
                [document, *(np.full(len(edit), row) for row, edit in recent)]
            )
        return Found(known, document, changes.astype(np.int64))

    def keys(self) -> Iterable[int]:
        """The keys of all documents."""
        yield from self._keys.tolist()
        yield from self._recent
