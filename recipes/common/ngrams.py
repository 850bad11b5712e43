"""How concentrated the n-grams of a set are: Figures 5, 10 and 11, in bounded memory."""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
NUM_BUCKETS = 10_000  # as in the paper's Figure 5
NUM_GROUPS = 50  # of documents, for the confidence interval
TOP_BIGRAMS = (40, 64)  # as in Figures 10 and 11
# Bigrams that are counted by name; beyond, the rarest ones are forgotten.
MOST_NAMED = 400_000


class NGrams:
    """Counts of the uni- and bigrams of documents, as token ids."""

    def __init__(self) -> None:
        self.counts = {n: np.zeros((NUM_GROUPS, NUM_BUCKETS), np.int64) for n in (1, 2)}
        self._named: dict[int, int] = {}
        self._num_documents = 0

    def add(self, ids: Ids) -> None:
        """Count those of one document: (T,) token ids, without special ones."""
        group = self._num_documents % NUM_GROUPS
        self._num_documents += 1
        np.add.at(self.counts[1][group], bucket_of(ids), 1)
        pairs = (ids[:-1] << 32) | ids[1:]
        np.add.at(self.counts[2][group], bucket_of(pairs), 1)
        found, counts = np.unique(pairs, return_counts=True)
        for pair, count in zip(found.tolist(), counts.tolist(), strict=True):
            self._named[pair] = self._named.get(pair, 0) + count
        if len(self._named) > 2 * MOST_NAMED:
            kept = sorted(self._named.items(), key=lambda one: -one[1])[:MOST_NAMED]
            self._named = dict(kept)

    def top_bigrams(self, number: int) -> list[tuple[tuple[int, int], int]]:
        """The most frequent bigrams, as pairs of token ids, and their counts."""
        ordered = heapq.nsmallest(number, self._named.items(), key=lambda one: (-one[1], one[0]))
        return [((pair >> 32, pair & 0xFFFFFFFF), count) for pair, count in ordered]

    def top_share(self, number: int) -> float:
        """Which share of all bigrams the most frequent ones are; NaN where there is none."""
        total = int(self.counts[2].sum())
        return sum(c for _, c in self.top_bigrams(number)) / total if total else math.nan

    def record(self) -> dict[str, Any]:
        """Entropy, concentration and the share of the top bigrams, as JSON has them."""
        found: dict[str, Any] = {}
        for n, name in ((1, "unigrams"), (2, "bigrams")):
            index, low, high = self.concentration(n)
            found[name] = {
                "tokens": int(self.counts[n].sum()),
                "entropy_bits": entropy(self.counts[n].sum(0)),
                "concentration": index,
                "concentration_low": low,
                "concentration_high": high,
                "buckets_used": int((self.counts[n].sum(0) > 0).sum()),
            }
        found["top_40_bigrams_share"] = self.top_share(40)
        found["top_64_bigrams_share"] = self.top_share(64)
        return found

    def concentration(self, n: int) -> tuple[float, float, float]:
        """The index of n-grams, and its 95 % confidence interval.

        The interval is a jackknife's over groups of documents, so that documents that repeat
        themselves widen it.
        """
        counts = self.counts[n]
        whole = collision_index(counts.sum(0))
        used = [g for g in range(NUM_GROUPS) if counts[g].any()]
        if len(used) < 2:
            return whole, math.nan, math.nan
        without = np.array([collision_index(counts.sum(0) - counts[g]) for g in used])
        m = len(used)
        spread = math.sqrt((m - 1) / m * ((without - without.mean()) ** 2).sum())
        return whole, whole - 1.96 * spread, whole + 1.96 * spread


def bucket_of(grams: Ids) -> Ids:
    """A bucket for each n-gram: (m,) int64 -> (m,) int64 in [0, 10,000)."""
    words = grams.astype(np.uint64)
    # The finalizer of splitmix64: neighbouring ids fall far from each other.
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return (words % np.uint64(NUM_BUCKETS)).astype(np.int64)


def entropy(counts: npt.NDArray[np.int64]) -> float:
    """Of the distribution that counts have, in bits.

    Example:
        >>> entropy(np.array([2, 2, 0, 4]))
        1.5
    """
    p = counts[counts > 0] / max(int(counts.sum()), 1)
    return float(-(p * np.log2(p)).sum())


def collision_index(counts: npt.NDArray[np.int64]) -> float:
    """The chance that two different draws agree, times the number of buckets: Simpson's index.

    It is unbiased: it does not fall as a set grows, which a share of the most frequent would.

    Example:
        >>> collision_index(np.array([1, 1, 1, 1])), collision_index(np.array([4, 0, 0, 0]))
        (0.0, 4.0)
    """
    total = int(counts.sum())
    if total < 2:
        return math.nan
    pairs = (counts.astype(np.float64) * (counts - 1)).sum()
    return float(pairs / (float(total) * (total - 1)) * len(counts))
