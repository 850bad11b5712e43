"""Sets compared with the first one: coverage of its perplexities, warnings, and filters.

The filters of section 2.2 run on the sampled documents. `selection.py` filters a whole set, and
writes what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from common.ngrams import NUM_BUCKETS, bucket_of, collision_index

from toedit_collate.errors import UnusableError

from .measure import MIN_TOKENS, Measured
from .selection import density, dsir, highest, ngrams_of, rare_first

Array = npt.NDArray[np.float64]
LITTLE_COVERAGE = 0.9
MUCH_MORE = 1.25  # times the first set's concentration
KEPT_SHARE = 0.5  # by each filter


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
    """What is suspicious in later sets, compared with the first, in sentences."""
    first, found = sets[0], []
    for other in sets[1:]:
        for n, name in ((1, "tokens"), (2, "pairs of tokens")):
            theirs, low, _ = other.ngrams.concentration(n)
            ours, _, high = first.ngrams.concentration(n)
            # NaN, where there is one document alone, compares as False: no warning.
            if theirs > MUCH_MORE * ours and low > high:
                found.append(
                    f"{other.name} is over-concentrated compared with {first.name}: two {name} "
                    f"drawn from it agree {theirs / ours:.1f} times as often (index {theirs:.1f} "
                    f"against {ours:.1f}, and their 95 % intervals are apart). Text that models "
                    "wrote often looks so."
                )
        reached = coverage(first.log_perplexity, other.log_perplexity)
        if reached < LITTLE_COVERAGE:
            found.append(
                f"{other.name} covers {reached:.0%} of the range of perplexities of {first.name}: "
                "training on it alone shows a model little of the rest."
            )
    return found


def check_can_map() -> None:
    """Raise `UnusableError` where scikit-learn is not installed."""
    try:
        import sklearn  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        raise UnusableError(
            "t-SNE needs scikit-learn, which is not installed; "
            'pip install "toedit_collate[analysis]"'
        ) from None


def compare_baselines(first: Measured, pool: Measured, *, seed: int = 0) -> list[dict[str, Any]]:
    """Filter a set by each method, towards the first set where a method has a target.

    Args:
        first: the target.
        pool: what is filtered; half of its sampled documents are kept.
        seed: of draws.

    Returns:
        For each filter ("all": the set itself) its `name`; `pool`, the set's name; how many
        documents are `kept`; their `perplexity` (geometric mean over documents), `coverage` of the
        first set's perplexities, and `concentration` of bigrams.
    """
    target = [one for one in first.sample if len(one.ids) > 1]
    raw = [one for one in pool.sample if len(one.ids) > 1 and one.num_scored]
    raw = [one for one in raw if one.num_scored >= MIN_TOKENS] or raw
    keep = max(1, int(KEPT_SHARE * len(raw)))
    ours, theirs = ([ngrams_of(one.ids) for one in some] for some in (target, raw))
    bigrams = [bucket_of((one.ids[:-1] << 32) | one.ids[1:]) for one in raw]
    perplexity = np.array([-one.logprob for one in raw])
    scores = {
        "importance resampling (DSIR)": dsir(lambda: ours, lambda: theirs, seed),
        "perplexity filter": perplexity,
        "density sampling": rare_first(density(lambda: theirs, rows=100, seed=seed), seed),
    }
    choices = {"all": np.arange(len(raw))}
    choices |= {name: np.flatnonzero(highest(values, keep)) for name, values in scores.items()}
    return [
        {
            "name": name,
            "pool": pool.name,
            "kept": len(chosen),
            "perplexity": float(np.exp(perplexity[chosen].mean())),
            "coverage": coverage(first.log_perplexity, perplexity[chosen]),
            "concentration": collision_index(
                np.bincount(np.concatenate([bigrams[i] for i in chosen]), minlength=NUM_BUCKETS)
            ),
        }
        for name, chosen in choices.items()
    ]
