"""Rows of different lengths, one after another in one array."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def ranges(begin: Array, counts: Array) -> Array:
    """The numbers begin[i], begin[i] + 1, ... (counts[i] of them) for each i, one after another.

    Example:
        >>> ranges(np.array([5, 20]), np.array([3, 2])).tolist()
        [5, 6, 7, 20, 21]
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(begin - (ends - counts), counts)


def sums_of_rows(values: Array, lengths: Array) -> Array:
    """(n,) int64: the sum of the first lengths[0] values, of the next lengths[1] values, ...

    Example:
        >>> sums_of_rows(np.array([1, 2, 3, 4]), np.array([1, 0, 3])).tolist()
        [1, 0, 9]
    """
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(lengths, dtype=np.int64)
    return total[ends] - total[ends - lengths]


def narrowed(values: Array) -> Array:
    """The values in the smallest unsigned integer type that holds them; none may be negative."""
    if len(values) and values.min() < 0:
        raise ValueError(f"expected numbers from 0, got {values.min()}")
    return values.astype(np.min_scalar_type(values.max() if len(values) else 0), copy=False)
