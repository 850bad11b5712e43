"""One document on both sides: its tokens for the prior, and where the trainee's tokens begin."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .byte_tokenizer import ByteTokenizer, IntArray
from .groups import ChainGroups

# A special token takes so many places in the string of bytes that both sides cut: one behind which
# text begins, and one for a blank that SentencePiece puts before it.
_PLACES_OF_SPECIAL = 2


@dataclass(frozen=True)
class AlignedDocument:
    """A document of L tokens of the trainee, and K of the prior.

    Attributes:
        prior_tokens: (K,) int64, the same text for the prior.
        begin: (L,) int64, which of the K tokens begins where a token begins; -1 where none does,
            and at special tokens.
        length: (L,) int64, of the chain: how many of the K begin inside the token; 0 where `begin`
            is -1.
        groups: for each chain of several, in order, the group of its last token.
        agrees: whether both sides hold the same bytes; if not, nothing is aligned.
    """

    prior_tokens: IntArray
    begin: IntArray
    length: IntArray
    groups: list[IntArray] = field(default_factory=list)
    agrees: bool = True


class Aligner:
    """Tokenizes documents of the trainee for the prior. It can be sent to other processes.

    Args:
        trainee: its tokenizer.
        prior: its tokenizer.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> def byte_level(*merges):
        ...     tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
        ...     raw = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, list(merges)))
        ...     raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        ...     return PreTrainedTokenizerFast(tokenizer_object=raw)
        >>> trainee = ByteTokenizer(byte_level(("t", "h"), ("th", "e")), "trainee's")
        >>> prior = ByteTokenizer(byte_level(("h", "e")), "prior's")
        >>> ids = np.array(trainee.encode(b"the sea"))
        >>> [trainee.bytes[i] for i in ids]
        [b'the', b' ', b's', b'e', b'a']
        >>> aligned = Aligner(trainee, prior).align(ids)
        >>> [prior.bytes[i] for i in aligned.prior_tokens]
        [b't', b'he', b' ', b's', b'e', b'a']
        >>> aligned.begin, aligned.length
        (array([0, 2, 3, 4, 5]), array([2, 1, 1, 1, 1]))
    """

    def __init__(self, trainee: ByteTokenizer, prior: ByteTokenizer) -> None:
        self.trainee = trainee
        self.prior = prior
        self.groups = ChainGroups(trainee, prior)
        self.special = _specials_in_place(trainee, prior)

    def align(self, tokens: IntArray) -> AlignedDocument:
        """Align a document: (L,) int64, the trainee's ids."""
        trainee, prior = self.trainee, self.prior
        is_text = trainee.lengths[tokens] > 0
        borders = np.flatnonzero(np.diff(is_text, prepend=False, append=False))
        starts = np.zeros(len(tokens), dtype=np.int64)
        ids: list[int] = []
        prior_starts: list[IntArray] = []
        place, done, is_first = _PLACES_OF_SPECIAL, 0, True
        for begin, end in zip(borders[::2].tolist(), borders[1::2].tolist(), strict=True):
            place = self._put_specials(
                tokens[done:begin], starts[done:begin], ids, prior_starts, place
            )
            data = trainee.decode(tokens[begin:end].tolist())
            assert data is not None
            own_prefix = self._has_prefix(data, is_first)
            text = data[own_prefix:]
            prior_prefix = self._gets_prefix(text, is_first)
            of_text = prior.encode(b" " * prior_prefix + text)
            if prior.decode(of_text) != b" " * prior_prefix + text:
                return _nothing_aligned(len(tokens))
            widths = trainee.lengths[tokens[begin:end]]
            starts[begin:end] = place - own_prefix + np.cumsum(widths) - widths
            widths = prior.lengths[of_text]
            prior_starts.append(place - prior_prefix + np.cumsum(widths) - widths)
            ids += of_text
            place += len(text)
            done, is_first = end, False
        self._put_specials(tokens[done:], starts[done:], ids, prior_starts, place)
        prior_start = np.concatenate([np.zeros(0, dtype=np.int64), *prior_starts])
        chain_begin = np.searchsorted(prior_start, starts)
        chain_end = np.searchsorted(prior_start, starts + trainee.lengths[tokens])
        meets = is_text & (chain_begin < chain_end)
        meets[meets] = prior_start[chain_begin[meets]] == starts[meets]
        prior_tokens = np.array(ids, dtype=np.int64)
        chain_begin = np.where(meets, chain_begin, -1)
        length = np.where(meets, chain_end - chain_begin, 0)
        return AlignedDocument(
            prior_tokens,
            chain_begin,
            length,
            self._groups(tokens, prior_tokens, chain_begin, length),
        )

    def _put_specials(
        self,
        tokens: IntArray,
        starts: IntArray,
        ids: list[int],
        prior_starts: list[IntArray],
        place: int,
    ) -> int:
        """Put special tokens of the trainee, and what stands there for the prior, at a place.

        Returns:
            The place behind them.
        """
        for number, token in enumerate(tokens.tolist()):
            starts[number] = place
            there = self.special.get(token)
            if there is not None:
                ids.append(there)
                prior_starts.append(np.array([place]))
            place += _PLACES_OF_SPECIAL
        return place

    def _has_prefix(self, data: bytes, is_first: bool) -> bool:
        """Whether the first blank of a text is one that the trainee's tokenizer put there."""
        kind = self.trainee.kind
        if not (kind.prefix == "always" or (kind.prefix == "first" and is_first)):
            return False
        # Where text that begins with a blank gets none, two blanks are both of the text.
        return data.startswith(b" ") and (kind.prefix_before_blank or not data.startswith(b"  "))

    def _gets_prefix(self, text: bytes, is_first: bool) -> bool:
        """Whether the prior's tokenizer puts a blank before a text."""
        kind = self.prior.kind
        if not (kind.prefix == "always" or (kind.prefix == "first" and is_first)):
            return False
        return kind.prefix_before_blank or not text.startswith(b" ")

    def _groups(
        self, tokens: IntArray, prior_tokens: IntArray, begin: IntArray, length: IntArray
    ) -> list[IntArray]:
        found = []
        for place in np.flatnonzero(length > 1).tolist():
            start, last = int(begin[place]), int(begin[place] + length[place]) - 1
            covered = self.prior.decode(prior_tokens[start:last].tolist())
            assert covered is not None
            found.append(self.groups.of(covered, int(tokens[place])))
        return found


def _nothing_aligned(L: int) -> AlignedDocument:
    return AlignedDocument(
        prior_tokens=np.zeros(0, dtype=np.int64),
        begin=np.full(L, -1, dtype=np.int64),
        length=np.zeros(L, dtype=np.int64),
        agrees=False,
    )


def _specials_in_place(trainee: ByteTokenizer, prior: ByteTokenizer) -> dict[int, int]:
    """Special ids of the trainee -> what the prior sees there; it sees nothing at others.

    Its BOS where the trainee's stands, its EOS likewise, and a special token of the same name.
    """
    found = {
        token_id: prior.special[name]
        for name, token_id in trainee.special.items()
        if name in prior.special
    }
    if trainee.eos_id is not None and prior.eos_id is not None:
        found.setdefault(trainee.eos_id, prior.eos_id)
    if trainee.bos_id is not None and prior.bos_id is not None:
        found[trainee.bos_id] = prior.bos_id
    return found
