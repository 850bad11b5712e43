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


def narrowed(values: Array) -> Array:
    """The values in the smallest unsigned integer type that holds them; none may be negative."""
    if len(values) and values.min() < 0:
        raise ValueError(f"expected numbers from 0, got {values.min()}")
    smallest = np.min_scalar_type(values.max() if len(values) else 0)
    return values.astype(f"u{smallest.itemsize}", copy=False)  # torch takes no ulonglong
