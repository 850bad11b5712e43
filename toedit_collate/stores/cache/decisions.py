"""Decisions: what a prior and a policy settle about documents before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..ragged import Array, ranges, sums_of_runs

# Where each array has its rows, and of what type it is.
_LAYOUT = {
    "keys": ("document", np.uint64),
    "checks": ("document", np.uint64),
    "counts": ("document", np.int64),
    "position": ("token", np.int32),
    "num_candidates": ("token", np.int32),
    "ids": ("candidate", np.uint32),
    "logits": ("candidate", np.float32),
}


@dataclass(frozen=True)
class Decisions:
    """What was decided about n documents: which tokens, and among which candidates to draw.

    A frozen prior decides the same in every epoch; only the draw differs. *Decided* tokens are
    those that are selected or dropped. The documents stand one after another, the d decided tokens
    of all of them too, and so do the c candidates of all tokens.

    Attributes:
        keys: (n,) uint64, of each document's content and of which of its tokens may be edited.
        checks: (n,) uint64, other 64 bits of the same: a document of another content is told apart
            even where it has the key.
        counts: (n,) int64, decided tokens of each document; often 0.
        position: (d,) int32, place of each decided token in its document, ascending within it.
        num_candidates: (d,) int32, candidates of each; 0 means "drop this token".
        ids: (c,) uint32, of the candidates, ascending for each token.
        logits: (c,) float32, of the candidates, as the prior gave them: before the temperature.

    Raises:
        TypeError: an array is of another type.
        ValueError: the arrays do not belong together.
    """

    keys: Array
    checks: Array
    counts: Array
    position: Array
    num_candidates: Array
    ids: Array
    logits: Array

    def __post_init__(self) -> None:
        for name, (_, dtype) in _LAYOUT.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != 1:
                raise TypeError(
                    f"{name} must be one-dimensional and {np.dtype(dtype)}, got {array.ndim} "
                    f"dimensions of {array.dtype}; convert it with .astype({np.dtype(dtype)})"
                )
        sizes = len(self.keys), int(self.counts.sum()), int(self.num_candidates.sum())
        for name, (kind, _) in _LAYOUT.items():
            wanted = dict(zip(("document", "token", "candidate"), sizes, strict=True))[kind]
            if len(getattr(self, name)) != wanted:
                raise ValueError(
                    f"{name} must hold {wanted} numbers, one for each {kind}, got "
                    f"{len(getattr(self, name))}; counts and num_candidates say how many there are"
                )

    @classmethod
    def empty(cls) -> Decisions:
        """Of no documents."""
        return cls(**{name: np.zeros(0, dtype) for name, (_, dtype) in _LAYOUT.items()})

    @classmethod
    def concatenate(cls, parts: Sequence[Decisions]) -> Decisions:
        """The documents of all parts, one part after another."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.empty()
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in _LAYOUT})

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays as they stand here; a cache keeps them in fewer."""
        return sum(getattr(self, name).nbytes for name in _LAYOUT)

    @property
    def widths(self) -> Array:
        """(n,) int64, candidates of each document."""
        return sums_of_runs(self.num_candidates, self.counts)

    def select(self, rows: Array) -> Decisions:
        """Some of the documents, in the order of `rows`: (m,) whole numbers in [0, n)."""
        counts, widths = self.counts[rows], self.widths
        tokens = ranges((np.cumsum(self.counts) - self.counts)[rows], counts)
        candidates = ranges((np.cumsum(widths) - widths)[rows], widths[rows])
        return Decisions(
            keys=self.keys[rows],
            checks=self.checks[rows],
            counts=counts,
            position=self.position[tokens],
            num_candidates=self.num_candidates[tokens],
            ids=self.ids[candidates],
            logits=self.logits[candidates],
        )
