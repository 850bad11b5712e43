"""Documents are known by a key of their content."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...tokens.content import content_digests
from ..ragged import Array


def keys_of(tokens: torch.Tensor | Array, lengths: Sequence[int]) -> Array:
    """(n,) uint64 keys of n documents, whose tokens stand one after another.

    Example:
        >>> len(set(keys_of(torch.tensor([5, 6, 7, 5, 6]), [2, 1, 2]).tolist()))
        2
    """
    return np.ascontiguousarray(content_digests(np.asarray(tokens), lengths)[:, 0])
