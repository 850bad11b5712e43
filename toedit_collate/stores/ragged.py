"""Rows of various lengths that stand one behind another in one array."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]


def ranges(begin: IntArray, counts: IntArray) -> IntArray:
    """The numbers begin[i], begin[i] + 1, ... (counts[i] of them) for each i, one after another.

    Example:
        >>> ranges(np.array([5, 20]), np.array([3, 2])).tolist()
        [5, 6, 7, 20, 21]
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(begin - (ends - counts), counts)
