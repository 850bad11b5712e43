"""Sets beside the first one: coverage of its perplexities, and warnings in plain words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .measure import Measured

Array = npt.NDArray[np.float64]
LITTLE_COVERAGE = 0.9
MUCH_MORE = 1.25  # times the first set's concentration


def coverage(first: Array, other: Array) -> float:
    """Which share of the first set's documents has a perplexity that the other set reaches.

    Reached is what lies between the other's 1st and 99th percentile, so that single documents
    stretch nothing. A set covers itself to 98 %.

    Source: arXiv:2412.14689, Figures 3 and 9, where synthetic data cover a part of the range of
    human data.

    Args:
        first: (n,) log perplexities.
        other: (m,) log perplexities of the other set.

    Returns:
        In [0, 1]; NaN where either is empty.

    Example:
        >>> coverage(np.arange(10.0), np.array([-1.0, 4.5, 4.5]))
        0.5
    """
    if not len(first) or not len(other):
        return float("nan")
    low, high = np.quantile(other, [0.01, 0.99])
    return float(((first >= low) & (first <= high)).mean())


def warnings_of(sets: Sequence[Measured]) -> list[str]:
    """What is suspicious in later sets beside the first, in sentences."""
    first, found = sets[0], []
    for other in sets[1:]:
        found += _concentrated(first, other)
        reached = coverage(first.log_perplexity, other.log_perplexity)
        if reached < LITTLE_COVERAGE:
            found.append(
                f"{other.name} covers {reached:.0%} of the range of perplexities of {first.name}: "
                "training on it alone shows a model little of the rest."
            )
    return found


def _concentrated(first: Measured, other: Measured) -> list[str]:
    found = []
    for n, name in ((1, "tokens"), (2, "pairs of tokens")):
        theirs, low, _ = other.ngrams.concentration(n)
        ours, _, high = first.ngrams.concentration(n)
        # NaN, where there is one document alone, compares as False: no warning.
        if theirs > MUCH_MORE * ours and low > high:
            found.append(
                f"{other.name} is over-concentrated beside {first.name}: two {name} drawn from it "
                f"agree {theirs / ours:.1f} times as often (index {theirs:.1f} against {ours:.1f}, "
                "and their 95 % intervals are apart). Text that models wrote often looks so."
            )
    return found
