"""Documents are known by a key of their content."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...tokens.draws import document_keys
from .frames import Array


def keys_of(tokens: torch.Tensor, lengths: Sequence[int]) -> Array:
    """(n,) uint64 keys of n documents, whose tokens stand one after another."""
    of_each = torch.as_tensor(lengths, dtype=torch.int64)
    document = torch.arange(len(of_each)).repeat_interleave(of_each)
    position = torch.arange(len(tokens)) - (of_each.cumsum(0) - of_each)[document]
    return document_keys(tokens, document, position, len(of_each)).numpy().view(np.uint64)
