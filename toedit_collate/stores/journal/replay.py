"""Applying a generation's changes to documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ragged import Array
from .table import Found


@dataclass
class Texts:
    """n documents of M tokens on their way through the generations.

    Attributes:
        tokens: (M,) int64, of all documents, one after the other.
        removed: (M,) bool, tokens that are gone.
        start: (n,) int64, where each document begins among the M.
    """

    tokens: Array
    removed: Array
    start: Array

    @classmethod
    def of(cls, tokens: Array, start: Array) -> Texts:
        """The source documents; `tokens` is copied."""
        return cls(tokens.copy(), np.zeros(len(tokens), bool), start)


def replay_generation(texts: Texts, found: Found) -> None:
    """Apply the changes of one generation, in place.

    Positions count the tokens that are left of a document, so removals move those behind them.

    Raises:
        ValueError: a changed token is not there.
    """
    if not len(found.changes):
        return
    position, old, new = found.changes.T
    left = np.flatnonzero(~texts.removed)
    borders = np.searchsorted(left, np.append(texts.start, len(texts.tokens)))
    place = borders[found.document] + position
    outside = place >= borders[found.document + 1]
    if outside.any() or (texts.tokens[left[place]] != old).any():
        raise ValueError(
            "its changes belong to another document: the old tokens are not there; is the text, "
            "or the tokenizer, another one than in training?"
        )
    place = left[place]
    texts.tokens[place] = np.where(new < 0, old, new)
    texts.removed[place] = new < 0
