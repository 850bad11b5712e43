"""The edits of one generation in memory, and their replay on documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...tokens.draws import content_digests
from ..index import GrowingArray, KeyIndex
from ..ragged import Array, ranges
from .files import Frame


def keys_of(tokens: torch.Tensor | Array, lengths: Sequence[int]) -> Array:
    """The keys of n documents, whose tokens follow each other: (n,) uint64."""
    return np.ascontiguousarray(content_digests(np.asarray(tokens), lengths)[:, 0])


@dataclass(frozen=True)
class Found:
    """The edits of n documents in one generation.

    Attributes:
        known: (n,) bool, whether the generation edited the document.
        document: (c,) int64, in [0, n): the document of each change.
        changes: (c, 3) int64, position, old and new token.
    """

    known: Array
    document: Array
    changes: Array


class EditTable:
    """Edits by document key. Of two edits of one document, the first counts.

    It takes 20 bytes a document and 12 bytes a change, up to twice as much while it grows.
    """

    def __init__(self) -> None:
        self._index = KeyIndex()
        self._ends = GrowingArray(np.zeros(1, np.int64))  # of the changes of each row
        self._changes = GrowingArray(np.zeros((0, 3), np.int32))

    @classmethod
    def of(cls, parts: Sequence[tuple[int, Frame]]) -> EditTable:
        """The table of some frames and their ranks.

        Of two edits of one document, the one of the earlier step counts, then of the lower rank.
        """
        ranks = np.repeat([rank for rank, _ in parts], [len(frame.keys) for _, frame in parts])
        frame = Frame.joined([frame for _, frame in parts])
        step_of_document = np.repeat(frame.steps["step"], frame.steps["documents"])
        order = np.lexsort((ranks, step_of_document))
        begin, counts = (np.cumsum(frame.counts) - frame.counts)[order], frame.counts[order]
        table = cls()
        table.add(frame.keys[order], counts, frame.changes[ranges(begin, counts)])
        return table

    def __len__(self) -> int:
        return self._index.num_rows

    def add(self, keys: Array, counts: Array, changes: Array) -> None:
        """Add the edits of documents that are not in the table yet.

        Args:
            keys: (n,) uint64.
            counts: (n,) int64, number of changes of each document.
            changes: (c, 3), one document after another.
        """
        is_new = self._index.add_new(keys)
        self._changes.append(changes[np.repeat(is_new, counts)])
        self._ends.append(self._ends.values[-1] + np.cumsum(counts[is_new]))

    def look_up(self, keys: Array) -> Found:
        """Find the edits of n documents by their (n,) uint64 keys."""
        rows = self._index.find(keys)
        known = rows >= 0
        documents, rows = np.flatnonzero(known), rows[known]
        begin = self._ends.values[rows]
        counts = self._ends.values[rows + 1] - begin
        changes = self._changes.values[ranges(begin, counts)].astype(np.int64)
        return Found(known, np.repeat(documents, counts), changes)


@dataclass
class Texts:
    """n documents of M tokens, brought from generation to generation.

    Attributes:
        tokens: (M,) int64, one document after another.
        removed: (M,) bool, tokens that were removed.
        start: (n,) int64, the first of the M tokens of each document.
    """

    tokens: Array
    removed: Array
    start: Array

    @classmethod
    def of(cls, tokens: Array, start: Array) -> Texts:
        """The source documents; `tokens` is copied."""
        return cls(tokens.copy(), np.zeros(len(tokens), bool), start)

    def replay(self, found: Found) -> None:
        """Apply the changes of one generation, in place; a ValueError if they do not fit.

        Positions count the remaining tokens of a document.
        """
        if not len(found.changes):
            return
        position, old, new = found.changes.T
        left = np.flatnonzero(~self.removed)
        borders = np.searchsorted(left, np.append(self.start, len(self.tokens)))
        place = borders[found.document] + position
        outside = place >= borders[found.document + 1]
        if outside.any() or (self.tokens[left[place]] != old).any():
            raise ValueError(
                "its changes belong to another document: the old tokens are not there; pass the "
                "text and the tokenizer of the training run"
            )
        place = left[place]
        self.tokens[place] = np.where(new < 0, old, new)
        self.removed[place] = new < 0
