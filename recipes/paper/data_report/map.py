"""A map of documents by the prior's mean hidden states: Figure 4."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .measure import EMBEDDED, Measured

Array = npt.NDArray[np.float64]
_BEFORE_TSNE = 50  # dimensions


def embedding_map(sets: list[Measured], method: str, *, seed: int = 0) -> list[Array]:
    """Mean hidden states of documents on a plane (Figure 4).

    Args:
        sets: whose sampled documents have states.
        method: "pca", or "tsne", which needs scikit-learn.
        seed: of t-SNE.

    Returns:
        For each set, (n, 2).

    Raises:
        ImportError: t-SNE without scikit-learn.
        ValueError: the prior shows no hidden states.
    """
    groups = [[one.state for one in of.sample if one.state is not None][:EMBEDDED] for of in sets]
    if sum(map(len, groups)) < 3:
        raise ValueError("a map needs the hidden states of three documents or more")
    points = np.concatenate([np.stack(group) for group in groups if group]).astype(np.float64)
    points = _principal(points, 2 if method == "pca" else _BEFORE_TSNE)
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(points) - 1) / 3)
        points = TSNE(2, perplexity=perplexity, random_state=seed, init="pca").fit_transform(points)
    return np.split(points, np.cumsum([len(group) for group in groups])[:-1])


def _principal(points: Array, dimensions: int) -> Array:
    """Principal components: (n, D) -> (n, `dimensions`), 0 where there are no more.

    By NumPy: to import scikit-learn takes longer than all else that the map needs.

    Example:
        >>> _principal(np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]), 1).round(6).tolist()
        [[-5.0], [0.0], [5.0]]
    """
    centred = points - points.mean(0)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    # The sign of a component is free: that of its largest weight is made positive.
    largest = np.abs(right).argmax(1)
    signs = np.sign(right[np.arange(len(right)), largest])
    flat = np.zeros((len(points), dimensions))
    found = (left * sizes * np.where(signs == 0, 1, signs))[:, :dimensions]
    flat[:, : found.shape[1]] = found
    return flat
