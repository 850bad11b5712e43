"""How each token of a trainee is scored, to be counted and shown."""

from __future__ import annotations

import numpy as np

from .byte_tokenizer import IntArray
from .document import AlignedDocument, Aligner

MEANING = {
    "one to one": "the prior has the same token",
    "begins a longer one": "a sum over the prior's tokens that begin with it",
    "chain of several": "a product along the prior's tokens in it",
    "begins inside one": "not scored",
    "left alone": "not scored: bytes disagree, or after the prior's last position",
}
WAYS = tuple(MEANING)
_ONE_TO_ONE, _LONGER, _CHAIN, _INSIDE, _LEFT_ALONE = range(len(WAYS))


def ways_of(document: AlignedDocument, tokens: IntArray, aligner: Aligner, known: int) -> IntArray:
    """The index into `WAYS` of each token of a document: (L,) int64.

    It is -1 at special tokens and at the first token of the document. The prior
    reads the first `known` of its tokens.
    """
    lengths = aligner.trainee.lengths[tokens]
    ways = np.full(len(tokens), _INSIDE if document.agrees else _LEFT_ALONE)
    if document.agrees:
        begin, length = document.begin, document.length
        scored = begin >= 0
        prior_lengths = aligner.prior.lengths[document.prior_tokens[begin[scored]]]
        ways[scored] = np.where(prior_lengths > lengths[scored], _LONGER, _ONE_TO_ONE)
        ways[scored & (length > 1)] = _CHAIN
        ways[scored & (begin == 0)] = _LEFT_ALONE
        # A token inside one of the prior's has no position of its own. So all that follow the
        # first one after the prior's last position count as after it.
        after = np.flatnonzero(scored & (begin + length > known))
        if len(after):
            ways[after[0] :] = _LEFT_ALONE
    ways[lengths == 0] = -1
    ways[:1] = -1
    return ways
