"""Counter-based random numbers, keyed by the content of a document.

The draw for a token depends on the seed, the epoch, the generation, the content of its document
and its position there, and on nothing else. So the edit is the same in any batch, padding or
packing, on any number of workers or ranks, and after a resume.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
Words = tuple[Tensor, Tensor, Tensor, Tensor]
# Multipliers and key increments of Philox4x32 (Salmon et al., "Parallel random numbers: as easy
# as 1, 2, 3", SC 2011).
_PHILOX_M0, _PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
_PHILOX_W0, _PHILOX_W1 = 0x9E3779B9, 0xBB67AE85


@dataclass(frozen=True)
class Draws:
    """What a draw depends on, besides the content of its document and the position there.

    Attributes:
        seed: of the policy, in [0, 2**64).
        epoch: number of the epoch, or None for draws that are the same in every epoch.
        generation: number of the generation.
    """

    seed: int
    epoch: int | None
    generation: int


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Philox4x32-10: four 32-bit words from four counter words and two key words.

    Args:
        counter: four int64 tensors of one shape, each word in [0, 2**32).
        key: two int64 tensors of that shape, likewise.

    Returns:
        Four int64 tensors of that shape, each word in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A product of two words of 32 bits wraps in int64, which keeps its 64 bits as they are;
        # >> copies the sign bit, so the upper word is masked.
        product0, product1 = c0 * _PHILOX_M0, c2 * _PHILOX_M1
        high0, low0 = (product0 >> 32) & _MASK32, product0 & _MASK32
        high1, low1 = (product1 >> 32) & _MASK32, product1 & _MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _PHILOX_W0) & _MASK32, (k1 + _PHILOX_W1) & _MASK32
    return c0, c1, c2, c3


def token_words(tokens: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent words of 64 bits for each token and its place in its document.

    Args:
        tokens: (M,) int64, in [0, 2**32).
        position: (M,) int64.

    Returns:
        Two (M,) int64.
    """
    zero = torch.zeros_like(tokens)
    first, second, third, fourth = philox4x32(
        (tokens & _MASK32, position, zero, zero), (zero, zero)
    )
    return (first << 32) | second, (third << 32) | fourth


def sum_words(words: Tensor, document: Tensor, num_documents: int) -> Tensor:
    """A 64-bit key for each of N documents, of some of its tokens' words: (M,) -> (N,) int64.

    A sum of independent words: integer addition is associative, so the key does not depend on the
    order in which a GPU adds (a float sum would).
    """
    keys = torch.zeros(num_documents, dtype=torch.int64, device=words.device)
    return keys.index_add_(0, document, words)


def document_keys(tokens: Tensor, document: Tensor, position: Tensor, num_documents: int) -> Tensor:
    """A 64-bit key for each document, from its tokens and their order.

    Args:
        tokens: (M,) int64, the tokens of all documents, one after the other.
        document: (M,) int64, the number of each token's document, in [0, num_documents).
        position: (M,) int64, the position of each token in its document.
        num_documents: N.

    Returns:
        (N,) int64. Documents of the same tokens have the same key; others differ, but for a chance
        of 2**-64 a pair.
    """
    return sum_words(token_words(tokens, position)[0], document, num_documents)


def token_uniforms(keys: Tensor, document: Tensor, position: Tensor, draws: Draws) -> Tensor:
    """One number in [0, 1) for each of n tokens.

    Args:
        keys: (N,) int64, the keys of the documents (`document_keys`).
        document: (n,) int64, the number of each token's document, in [0, N).
        position: (n,) int64, the position of each token in its document.
        draws: what else they depend on.

    Returns:
        (n,) float64, multiples of 2**-53.
    """

    def word(value: int) -> Tensor:
        return torch.full_like(keys, value & _MASK32)

    # The seed is mixed into the key by a round of its own, so that seed and content can't cancel.
    epoch = 0 if draws.epoch is None else draws.epoch + 1
    counter = (word(draws.seed), word(draws.seed >> 32), word(epoch), word(draws.generation))
    of_documents = philox4x32(counter, (keys & _MASK32, (keys >> 32) & _MASK32))
    seeded = [words[document] for words in of_documents]
    zero = torch.zeros_like(position)
    first, second, _, _ = philox4x32((position, zero, seeded[2], seeded[3]), (seeded[0], seeded[1]))
    # float64 holds 53 bits: all of `first`, and the upper 21 of `second`.
    return ((first << 21) | (second >> 11)).double() * 2.0**-53
