"""In which way each token of a trainee is scored: to be counted and shown."""

from __future__ import annotations

import numpy as np

from .byte_tokenizer import IntArray
from .document import AlignedDocument, Aligner

WAYS = (
    "one to one",
    "begins a longer one",
    "chain of several",
    "begins inside one",
    "left alone",
)
MEANING = {
    "one to one": "the prior has the same token",
    "begins a longer one": "a sum over the prior's tokens that go on behind it",
    "chain of several": "a product along the prior's tokens in it",
    "begins inside one": "not scored",
    "left alone": "not scored: bytes disagree, or behind the prior's last position",
}


def ways_of(
    document: AlignedDocument, tokens: IntArray, aligner: Aligner, max_length: int | None
) -> IntArray:
    """Which of `WAYS` each token is scored in.

    Args:
        document: aligned; K tokens of the prior.
        tokens: (L,) int64, of the trainee.
        aligner: that aligned it.
        max_length: positions of the prior.

    Returns:
        (L,) int64, indices into `WAYS`; -1 at special tokens and at the first token, which nothing
        stands before.
    """
    names = {name: number for number, name in enumerate(WAYS)}
    lengths = aligner.trainee.lengths[tokens]
    if not document.agrees:
        ways = np.full(len(tokens), names["left alone"])
    else:
        ways = np.full(len(tokens), names["begins inside one"])
        begin, length = document.begin, document.length
        scored = begin >= 0
        ends = np.cumsum(aligner.prior.lengths[document.prior_tokens])
        first_bytes = ends[begin[scored]] - np.concatenate([[0], ends])[begin[scored]]
        ways[scored] = np.where(
            length[scored] > 1,
            names["chain of several"],
            np.where(
                first_bytes > lengths[scored], names["begins a longer one"], names["one to one"]
            ),
        )
        known = len(document.prior_tokens) if max_length is None else max_length
        ways[scored & ((begin == 0) | (begin + length > known))] = names["left alone"]
        # Inside a token, nothing tells where it stands: behind the last position, all are.
        behind = np.flatnonzero(scored & (begin + length > known))
        if len(behind):
            ways[behind[0] :] = names["left alone"]
    ways[lengths == 0] = -1
    ways[:1] = -1
    return ways
