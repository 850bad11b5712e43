"""Block: decisions sorted by key, in the narrowest types that hold them bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..ragged import Array, narrowed, ranges
from .decisions import Decisions

# Arrays with a row for each document stay in memory, wherever the others are.
OF_DOCUMENTS = ("keys", "checks", "counts", "widths")
OF_TOKENS = ("position", "num_candidates")
OF_CANDIDATES = ("ids_low", "ids_high", "logits")


class DamagedCacheError(ValueError):
    """A file of a cache does not hold what was written to it."""


@dataclass(frozen=True)
class Block:
    """Decisions of n documents by ascending key.

    Of a paper-like policy (8 candidates, 16-bit weights, a large vocabulary) it takes 24 bytes a
    document and 43 a decided token.

    Attributes:
        keys: (n,) uint64, ascending; none twice.
        checks: (n,) uint64, see `Decisions`.
        counts: (n,) uint32, decided tokens of each document.
        widths: (n,) uint32, candidates of each document.
        position: (d,) uint16 or uint32.
        num_candidates: (d,) uint8, uint16 or uint32.
        ids_low: (c,) uint16, the lower 16 bits of the candidates' ids.
        ids_high: (c,) uint8 or uint16, the upper bits; (0,) where all are 0.
        logits: (c,) uint16 (the bits of bfloat16), float16 or float32.
        source: what to call the block when it turns out to be damaged.
    """

    keys: Array
    checks: Array
    counts: Array
    widths: Array
    position: Array
    num_candidates: Array
    ids_low: Array
    ids_high: Array
    logits: Array
    source: str = "decisions in memory"

    @classmethod
    def pack(cls, decisions: Decisions) -> Block:
        """Sort and narrow decisions of documents of which none stands there twice."""
        order = np.argsort(decisions.keys)
        if (np.diff(order) != 1).any():
            decisions = decisions.select(order)
        high = decisions.ids >> np.uint32(16)
        return cls(
            keys=decisions.keys,
            checks=decisions.checks,
            counts=decisions.counts.astype(np.uint32),
            widths=decisions.widths.astype(np.uint32),
            position=narrowed(decisions.position, np.uint16, np.uint32),
            num_candidates=narrowed(decisions.num_candidates, np.uint8, np.uint16, np.uint32),
            ids_low=decisions.ids.astype(np.uint16),
            ids_high=narrowed(high, np.uint8, np.uint16) if high.any() else np.zeros(0, np.uint8),
            logits=_narrowed_logits(decisions.logits),
        )

    @classmethod
    def merge(cls, blocks: Sequence[Block]) -> Block:
        """One block of several; of a document that stands in two, the first decisions count."""
        if len(blocks) == 1:
            return blocks[0]
        parts = Decisions.concatenate([block.take(np.arange(len(block))) for block in blocks])
        return cls.pack(first_of_each(parts))

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        names = (*OF_DOCUMENTS, *OF_TOKENS, *OF_CANDIDATES)
        return sum(getattr(self, name).nbytes for name in names)

    @property
    def bytes_of_documents(self) -> Array:
        """(n,) int64: what each document takes of `nbytes`."""
        per_token = sum(getattr(self, name).itemsize for name in OF_TOKENS)
        arrays = [getattr(self, name) for name in OF_CANDIDATES]
        per_candidate = sum(array.itemsize for array in arrays if len(array))
        own = sum(getattr(self, name).itemsize for name in OF_DOCUMENTS)
        return (
            own
            + per_token * self.counts.astype(np.int64)
            + per_candidate * self.widths.astype(np.int64)
        )

    @cached_property
    def _begin(self) -> tuple[Array, Array]:
        """Where each document's tokens begin, and its candidates: two (n,) int64."""
        tokens = np.cumsum(self.counts, dtype=np.int64) - self.counts
        return tokens, np.cumsum(self.widths, dtype=np.int64) - self.widths

    def find(self, keys: Array) -> tuple[Array, Array]:
        """Whether each of (m,) keys is here, bool, and its row, int64, where it is."""
        if not len(self.keys):
            return np.zeros(len(keys), bool), np.zeros(len(keys), np.int64)
        rows = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return self.keys[rows] == keys, rows

    def take(self, rows: Array) -> Decisions:
        """The decisions of some documents, as they were before they were packed.

        Raises:
            DamagedCacheError: the block's file was changed.
        """
        counts, widths = self.counts[rows].astype(np.int64), self.widths[rows].astype(np.int64)
        tokens = ranges(self._begin[0][rows], counts)
        candidates = ranges(self._begin[1][rows], widths)
        ids = self.ids_low[candidates].astype(np.uint32)
        if len(self.ids_high):
            ids |= self.ids_high[candidates].astype(np.uint32) << np.uint32(16)
        num_candidates = self.num_candidates[tokens].astype(np.int32)
        if num_candidates.sum() != widths.sum():
            raise DamagedCacheError(
                f"{self.source} is damaged: its documents have other numbers of candidates than it "
                "says; delete it, and its documents are decided anew"
            )
        return Decisions(
            keys=self.keys[rows],
            checks=self.checks[rows],
            counts=counts,
            position=self.position[tokens].astype(np.int32),
            num_candidates=num_candidates,
            ids=ids,
            logits=_widened_logits(self.logits[candidates]),
        )


def first_of_each(decisions: Decisions) -> Decisions:
    """Without the documents whose key stands earlier, too."""
    # unique() gives the first place of each key.
    _, first = np.unique(decisions.keys, return_index=True)
    return decisions if len(first) == len(decisions) else decisions.select(np.sort(first))


def _narrowed_logits(logits: Array) -> Array:
    """In 16 bits if that loses nothing: the logits of a 16-bit model were rounded to them."""
    bits = logits.view(np.uint32)
    if not (bits & np.uint32(0xFFFF)).any():
        return (bits >> np.uint32(16)).astype(np.uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        half = logits.astype(np.float16)
    # The bits are compared, so that -0.0 and NaN come back as they went.
    if np.array_equal(half.astype(np.float32).view(np.uint32), bits):
        return half
    return logits


def _widened_logits(logits: Array) -> Array:
    if logits.dtype == np.uint16:
        return (logits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return logits.astype(np.float32)
