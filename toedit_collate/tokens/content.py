"""What a document is known by: a digest of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def content_digests(tokens: Array, lengths: Sequence[int], marks: Array | None = None) -> Array:
    """128 bits of BLAKE2b for each document, of its tokens and their order.

    The keys of draws (`document_keys`) are sums, so that documents of one key are made in seconds.
    That does no harm to draws; but what is kept of documents must be known by more.

    Args:
        tokens: (M,) whole numbers in [0, 2**31), of N documents, one after another.
        lengths: of the N documents; they sum up to M.
        marks: (M,) bool, which are part of the content, too; None: there are none.

    Returns:
        (N, 2) uint64.

    Example:
        >>> one, other = content_digests(np.array([5, 6, 6, 5]), [2, 2])
        >>> bool((one != other).all())
        True
    """
    # A byte order of its own, so that all machines agree.
    words = tokens.astype("<u4")
    if marks is not None:
        words = words << np.uint32(1) | marks
    content = memoryview(words.astype("<u4", copy=False).tobytes())
    digests, begin = [], 0
    for length in lengths:
        end = begin + 4 * length
        digests.append(hashlib.blake2b(content[begin:end], digest_size=16).digest())
        begin = end
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64).reshape(-1, 2)
