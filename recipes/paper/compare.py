"""Sets compared with the first one: coverage of its perplexities, warnings, and filters.

The filters of section 2.2 on a set: importance resampling by n-grams (DSIR, Xie et al., 2023), a
perplexity filter, density sampling (Sachdeva et al., 2024, arXiv:2402.09668) and a quality
classifier; all on the sampled documents. They need scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from common.ngrams import NUM_BUCKETS, bucket_of, collision_index

from toedit_collate.errors import UnusableError

from .measure import MIN_TOKENS, Measured, Sampled

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


def check_can_filter() -> None:
    """Raise `UnusableError` where scikit-learn is not installed."""
    try:
        import sklearn  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        raise UnusableError(
            "t-SNE and baselines need scikit-learn, which is not installed; "
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
    check_can_filter()
    rng = np.random.default_rng(seed)
    target = [one for one in first.sample if len(one.ids) > 1]
    raw = [one for one in pool.sample if len(one.ids) > 1 and one.num_scored]
    raw = [one for one in raw if one.num_scored >= MIN_TOKENS] or raw
    keep = max(1, int(KEPT_SHARE * len(raw)))
    target_counts, raw_counts = _features(target), _features(raw)
    perplexity = np.array([-one.logprob for one in raw])
    choices = {
        "all": np.arange(len(raw)),
        "importance resampling (DSIR)": _dsir(target_counts, raw_counts, keep, rng),
        "perplexity filter": np.argsort(perplexity, kind="stable")[:keep],
        "density sampling": _density(raw_counts, keep, rng),
        "classifier": _classifier(target_counts, raw_counts, keep, seed),
    }
    return [
        {
            "name": name,
            "pool": pool.name,
            "kept": len(chosen),
            "perplexity": float(np.exp(perplexity[chosen].mean())),
            "coverage": coverage(first.log_perplexity, perplexity[chosen]),
            "concentration": collision_index(raw_counts[chosen][:, NUM_BUCKETS:].sum(0)),
        }
        for name, chosen in choices.items()
    ]


def _features(documents: list[Sampled]) -> Any:
    """Hashed uni- and bigrams: an (n, 2 x 10,000) sparse matrix of counts."""
    from scipy.sparse import csr_array  # scikit-learn brings it

    columns = []
    for one in documents:
        pairs = (one.ids[:-1] << 32) | one.ids[1:]
        columns.append(np.concatenate([bucket_of(one.ids), NUM_BUCKETS + bucket_of(pairs)]))
    rows = np.repeat(np.arange(len(documents)), [len(found) for found in columns])
    counts = (np.ones(len(rows), np.int64), (rows, np.concatenate(columns)))
    return csr_array(counts, shape=(len(documents), 2 * NUM_BUCKETS))


def _dsir(target: Any, raw: Any, keep: int, rng: np.random.Generator) -> Any:
    """Draw without replacement by importance weights, bag-of-n-grams models of both sides."""
    ours, theirs = (np.asarray(one.sum(0)).ravel() + 1.0 for one in (target, raw))
    weights = raw @ (np.log(ours / ours.sum()) - np.log(theirs / theirs.sum()))
    # The highest of weights plus Gumbel noise: a draw without replacement.
    return np.argsort(-(weights + rng.gumbel(size=len(weights))))[:keep]


def _density(raw: Any, keep: int, rng: np.random.Generator) -> Any:
    """Draw documents the likelier, the lonelier they are: inverse to a kernel density."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.neighbors import KernelDensity
    from sklearn.preprocessing import StandardScaler, normalize

    dimensions = max(1, min(16, raw.shape[0] - 1))
    rows = normalize(raw.astype(float))
    points = TruncatedSVD(dimensions, random_state=0).fit_transform(rows)
    points = StandardScaler().fit_transform(points)
    density = KernelDensity(bandwidth="scott").fit(points).score_samples(points)
    return np.argsort(density - rng.gumbel(size=len(density)))[:keep]


def _classifier(target: Any, raw: Any, keep: int, seed: int) -> Any:
    """Keep what looks most like the target to a logistic regression that was fitted without it."""
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.preprocessing import normalize

    rows = normalize(vstack([target, raw]).astype(float))
    answers = np.repeat([1, 0], [target.shape[0], raw.shape[0]])
    if min(np.bincount(answers)) < 2:
        return np.arange(keep)
    model = LogisticRegression(max_iter=300, class_weight="balanced")
    halves = StratifiedKFold(2, shuffle=True, random_state=seed)
    scores = cross_val_predict(model, rows, answers, cv=halves, method="decision_function")
    return np.argsort(-scores[target.shape[0] :], kind="stable")[:keep]
