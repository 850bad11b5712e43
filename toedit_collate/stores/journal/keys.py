"""Documents are known by a key of their content."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...tokens.draws import document_keys
from .frames import Array


def keys_of(tokens: torch.Tensor, lengths: Sequence[int]) -> Array:
    """(n,) uint64 keys of n documents, whose tokens stand one after another."""
    of_each = np.asarray(lengths, dtype=np.int64)
    document = np.arange(len(of_each)).repeat(of_each)
    position = np.arange(len(tokens)) - (of_each.cumsum() - of_each)[document]
    return document_keys(tokens.numpy(), document, position, len(of_each))
