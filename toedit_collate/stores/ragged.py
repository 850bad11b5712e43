"""Rows of various lengths that stand one behind another in one array."""

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


def sums_of_runs(values: Array, lengths: Array) -> Array:
    """(n,) int64: the sum of the first lengths[0] values, of the lengths[1] next ones, ...

    Example:
        >>> sums_of_runs(np.array([1, 2, 3, 4]), np.array([1, 0, 3])).tolist()
        [1, 0, 9]
    """
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(lengths)
    return total[ends] - total[ends - lengths]


def narrowed(values: Array, *dtypes: type) -> Array:
    """The values in the first of some unsigned types that holds them all.

    Raises:
        ValueError: a value is negative, or beyond the last of the types.
    """
    least, most = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    for dtype in dtypes:
        if least >= 0 and most <= np.iinfo(dtype).max:
            return values.astype(dtype)
    raise ValueError(f"{np.dtype(dtypes[-1])} holds no {least if least < 0 else most}")
