"""Counter-based random numbers, keyed by the content of a document, and digests of that content.

The draw for a token depends on the seed, the epoch, the generation, the content of its document
and its position there, and on nothing else. So the edit is the same in any batch, padding or
packing, on any number of workers or ranks, and after a resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_MASK32 = 0xFFFFFFFF
# Multipliers and key increments of Philox4x32 (Salmon et al., "Parallel random numbers: as easy
# as 1, 2, 3", SC 2011), one for each of the two products of a round.
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_INCREMENTS = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
_LOWER = np.uint64(_MASK32)
_HALF = np.uint64(32)


@dataclass(frozen=True)
class Draws:
    """What a draw depends on, besides the content of its document and the position there."""

    seed: int  # of the policy, in [0, 2**64)
    epoch: int | None  # number of the epoch; None: draws are the same in every epoch
    generation: int  # number of the generation


def philox4x32(counter: Words, key: Words) -> Words:
    """Philox4x32-10: (4, *n) counter words and (2, *n) key words -> (4, *n) words.

    All are uint64 that hold 32 bits. Keys are broadcast. It runs in numpy: for a few thousand
    tokens, a PyTorch operation takes longer to start than to finish.

    Example:
        >>> hex(philox4x32(np.zeros((4, 1), np.uint64), np.zeros((2, 1), np.uint64))[0, 0])
        '0x6627e8d5'
    """
    even, odd = counter[0::2], counter[1::2]
    multipliers, increments = (
        pair.reshape(2, *[1] * (counter.ndim - 1)) for pair in (_MULTIPLIERS, _INCREMENTS)
    )
    for _ in range(10):
        product = even * multipliers
        # Each product's halves go to the other pair of words.
        even = (product >> _HALF)[::-1]
        even ^= odd
        even ^= key
        product &= _LOWER
        odd = product[::-1]
        key = (key + increments) & _LOWER
    return np.stack([even[0], odd[0], even[1], odd[1]])


def token_words(tokens: Array, position: Array) -> Words:
    """64 bits for each token and position: two (M,) int64 in [0, 2**32) -> (M,) uint64."""
    counter = np.zeros((4, len(tokens)), dtype=np.uint64)
    counter[0] = tokens.astype(np.uint64) & _LOWER
    counter[1] = position
    high, low, _, _ = philox4x32(counter, np.zeros((2, 1), dtype=np.uint64))
    return (high << _HALF) | low


def document_keys(tokens: Array, document: Array, position: Array, num_documents: int) -> Words:
    """A 64-bit key for each document: the sum of its tokens' words, modulo 2**64.

    `tokens`, `document` (its number, in [0, N)) and `position` are (M,) int64. Returns (N,)
    uint64. Two different documents share a key with a chance of 2**-64.
    """
    keys = np.zeros(num_documents, dtype=np.uint64)
    np.add.at(keys, document, token_words(tokens, position))
    return keys


def token_uniforms(
    keys: Words, document: Array, position: Array, draws: Draws, num_draws: int = 1
) -> npt.NDArray[np.float64]:
    """Draws in [0, 1) for each of n tokens: (n,) float64, multiples of 2**-53.

    Args:
        keys: (N,) uint64, from `document_keys`.
        document: (n,) int64, the number of each token's document, in [0, N).
        position: (n,) int64, its position in the document.
        draws: what else they depend on.
        num_draws: several draws give (n, num_draws), of which the first is that of a single draw.
    """
    # The seed is mixed into the key by a round of its own, so that seed and content can't cancel.
    epoch = 0 if draws.epoch is None else draws.epoch + 1
    mixed = np.empty((4, len(keys)), dtype=np.uint64)
    for row, value in enumerate((draws.seed, draws.seed >> 32, epoch, draws.generation)):
        mixed[row] = value & _MASK32
    seeded = philox4x32(mixed, np.stack([keys & _LOWER, keys >> _HALF]))[:, document]
    # A call of Philox gives two numbers of 64 bits, so draws 2 j and 2 j + 1 share counter j.
    calls = (num_draws + 1) // 2
    counter = np.zeros((4, len(position), calls), dtype=np.uint64)
    counter[0], counter[2:] = position[:, None], seeded[2:, :, None]
    counter[1] = np.arange(calls)
    words = philox4x32(counter, seeded[:2, :, None])
    # float64 holds 53 bits: all of a pair's first word, and the upper 21 of its second.
    pairs = (words[0::2] << np.uint64(21)) | (words[1::2] >> np.uint64(11))
    numbers = np.moveaxis(pairs, 0, -1).reshape(len(position), 2 * calls)[:, :num_draws] * 2.0**-53
    return numbers[:, 0] if num_draws == 1 else numbers


def content_digests(
    tokens: npt.NDArray[Any], lengths: Sequence[int], marks: npt.NDArray[np.bool_] | None = None
) -> Words:
    """128 bits of BLAKE2b for each of N documents, from its tokens and their order: (N, 2) uint64.

    The keys of `document_keys` are sums, so anyone can make two documents with the same key. That
    does not harm draws, but stored decisions need a digest that can't be forged. `tokens` are (M,)
    integers in [0, 2**31); `marks`, (M,) bool, become part of the content.
    """
    # A fixed byte order, so that all machines agree.
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
