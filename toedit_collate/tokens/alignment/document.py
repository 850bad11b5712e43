"""Aligns documents: the prior's tokens of the same bytes, and where the trainee's begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..documents import Documents
from ..token_batch import TokenBatch
from .byte_tokenizer import ByteTokenizer, IntArray, Kind
from .groups import ChainGroups, Groups

# How many places a special token takes among the bytes of a document: one for itself, and one for
# a blank that SentencePiece adds to the text after it.
_PLACES_OF_SPECIAL = 2


@dataclass(frozen=True)
class AlignedDocument:
    """A document of L tokens of the trainee and K tokens of the prior."""

    prior_tokens: IntArray  # (K,) int64, the same text for the prior
    # (L,) int64, which of the K tokens begins where a token begins; -1: none, or it is special
    begin: IntArray
    # (L,) int64, of the chain: how many of the K begin inside the token; 0 where `begin` is -1
    length: IntArray
    # for each chain of several tokens, in order, the group of its last one
    groups: list[IntArray] = field(default_factory=list)
    agrees: bool = True  # whether both sides have the same bytes; if not, nothing is aligned


class Aligner:
    """Tokenizes documents of the trainee for the prior. It can be pickled."""

    def __init__(self, trainee: ByteTokenizer, prior: ByteTokenizer) -> None:
        self.trainee = trainee
        self.prior = prior
        self.special = _specials_in_place(trainee, prior)
        self.groups = ChainGroups(trainee, prior, self.special)

    def align_all(
        self,
        tokens: IntArray,
        documents: Documents,
        known: Mapping[bytes, AlignedDocument] | None = None,
    ) -> list[AlignedDocument]:
        """Align the documents of a batch, except those that `known` has under their content."""
        parts, known = [tokens[part] for part in documents.slices], known or {}
        return [known.get(own.tobytes()) or self.align(own) for own in parts]

    def prepare(self, batch: TokenBatch) -> dict[bytes, AlignedDocument]:
        """The aligned documents of a batch by content, for `AlignedPrior.take_prepared`."""
        documents = [batch.tokens.numpy()[part] for part in batch.contexts.slices]
        return {own.tobytes(): self.align(own) for own in documents}

    def align(self, tokens: IntArray) -> AlignedDocument:
        """Align a document: (L,) int64 ids of the trainee."""
        trainee, prior = self.trainee, self.prior
        starts = np.zeros(len(tokens), dtype=np.int64)  # of the trainee's tokens, in bytes
        ids: list[int] = []  # of the prior
        prior_starts: list[int] = []
        place, is_first = _PLACES_OF_SPECIAL, True
        is_text = trainee.lengths[tokens] > 0
        for run in np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(is_text)) + 1):
            own = tokens[run].tolist()
            if not is_text[run[0]]:
                starts[run] = place + _PLACES_OF_SPECIAL * np.arange(len(run))
                for start, token in zip(starts[run].tolist(), own, strict=True):
                    if token in self.special:
                        ids.append(self.special[token])
                        prior_starts.append(start)
                place += _PLACES_OF_SPECIAL * len(run)
                continue
            data = trainee.decode(own)
            assert data is not None
            own_prefix = _had_prefix(trainee.kind, data, is_first)
            text = data[own_prefix:]
            prefix = b" " * _adds_prefix(prior.kind, text, is_first)
            of_text = prior.encode(prefix + text)
            if prior.decode(of_text) != prefix + text:
                none = np.zeros(len(tokens), dtype=np.int64)
                return AlignedDocument(none[:0], none - 1, none, agrees=False)
            widths = trainee.lengths[own]
            starts[run] = place - own_prefix + np.cumsum(widths) - widths
            widths = prior.lengths[of_text]
            prior_starts += (place - len(prefix) + np.cumsum(widths) - widths).tolist()
            ids += of_text
            place += len(text)
            is_first = False
        prior_start = np.array(prior_starts, dtype=np.int64)
        chain_begin = np.searchsorted(prior_start, starts)
        chain_end = np.searchsorted(prior_start, starts + trainee.lengths[tokens])
        meets = is_text & (chain_begin < chain_end)
        meets[meets] = prior_start[chain_begin[meets]] == starts[meets]
        chain_begin = np.where(meets, chain_begin, -1)
        length = np.where(meets, chain_end - chain_begin, 0)
        groups = []
        for number in np.flatnonzero(length > 1).tolist():
            first = chain_begin[number]
            covered = prior.decode(ids[first : first + length[number] - 1])
            assert covered is not None
            groups.append(self.groups.of(covered, int(tokens[number])))
        return AlignedDocument(np.array(ids, dtype=np.int64), chain_begin, length, groups)


def _had_prefix(kind: Kind, data: bytes, is_first: bool) -> bool:
    """Whether the tokenizer of a text added the blank at its beginning."""
    if not kind.prefixes(is_first):
        return False
    # If no blank is added before a blank, two blanks both belong to the text.
    return data.startswith(b" ") and (kind.prefix_before_blank or not data.startswith(b"  "))


def _adds_prefix(kind: Kind, text: bytes, is_first: bool) -> bool:
    """Whether a tokenizer adds a blank before a text."""
    return kind.prefixes(is_first) and (kind.prefix_before_blank or not text.startswith(b" "))


def _specials_in_place(trainee: ByteTokenizer, prior: ByteTokenizer) -> dict[int, int]:
    """Special ids of the trainee -> the prior's id in its place, if there is one.

    They are its BOS for the trainee's BOS, its EOS likewise, and special tokens of the same name.
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


@dataclass(frozen=True)
class AlignedBatch:
    """A batch of M tokens of the trainee in N documents, for which the prior has K tokens."""

    documents: Documents  # of the prior's tokens
    tokens: Tensor  # (K,) int64, the prior's
    # (M,) int64, which of the K begins where a token begins; -1: none, or it can't be predicted
    begin: IntArray
    length: IntArray  # (M,) int64, of the chain; 0 where `begin` is -1
    chain: IntArray  # (M,) int64, the index into `groups`, for chains of several
    groups: list[IntArray]  # of the last tokens of longer chains
    num_disagreeing: int  # number of documents whose bytes differ
    num_cut: int  # number of documents with more tokens than the prior has positions

    @classmethod
    def of(
        cls, aligned: Sequence[AlignedDocument], max_length: int | None, bos_id: int | None = None
    ) -> AlignedBatch:
        """Join documents, each as far as a prior with `max_length` positions reads it (None: all).

        The prior reads `bos_id` first, unless it is None or the document begins with it.
        """
        lengths = [len(one.prior_tokens) for one in aligned]
        if max_length is not None:
            begins = [one.prior_tokens[:1].tolist() for one in aligned]
            adds_bos = [bos_id is not None and first not in ([], [bos_id]) for first in begins]
            lengths = [min(n, max_length - a) for n, a in zip(lengths, adds_bos, strict=True)]
        documents = Documents.of_lengths(lengths)
        own = [len(one.begin) for one in aligned]
        start, size = np.repeat(documents.start.numpy(), own), np.repeat(lengths, own)
        begin = np.concatenate([one.begin for one in aligned])
        length = np.concatenate([one.length for one in aligned])
        # Nothing predicts the first token of a document.
        known = (begin > 0) & (begin + length <= size)
        kept = [one.prior_tokens[:size] for one, size in zip(aligned, lengths, strict=True)]
        return cls(
            documents=documents,
            tokens=torch.from_numpy(np.concatenate(kept)),
            begin=np.where(known, begin + start, -1),
            length=np.where(known, length, 0),
            chain=np.cumsum(length > 1) - 1,
            groups=[group for one in aligned for group in one.groups],
            num_disagreeing=sum(not one.agrees for one in aligned),
            num_cut=sum(
                len(one.prior_tokens) > len(some) for one, some in zip(aligned, kept, strict=True)
            ),
        )

    def requests(
        self, where: IntArray, ids: IntArray, groups: Groups
    ) -> tuple[IntArray, IntArray, IntArray]:
        """What the prior must predict to score n tokens of the trainee: R requests.

        A token makes one request for each token of its chain: for the prior's own token at all but
        the last, and for a group of ids at the last. The tokens are at `where`, (n,) ascending, and
        have the ids `ids`, (n,); each has a `begin`. `groups` are those of chains of one.

        Returns:
            (R,) int64, ascending, which of the prior's tokens; and for the m members of all groups
            (m,) int64, ascending, their request, and (m,) int64, their id.
        """
        length, begin = self.length[where], self.begin[where]
        place = _runs(begin, length)
        last = np.cumsum(length) - 1
        is_one = length == 1
        in_chains = [self.groups[number] for number in self.chain[where[~is_one]].tolist()]
        counts = np.ones(len(place), dtype=np.int64)
        first_of_group = groups.start[ids[is_one]]
        counts[last[is_one]] = groups.start[ids[is_one] + 1] - first_of_group
        counts[last[~is_one]] = [len(group) for group in in_chains]
        offset = np.cumsum(counts) - counts
        members = np.empty(int(counts.sum()), dtype=np.int64)
        is_last = np.zeros(len(place), dtype=bool)
        is_last[last] = True
        members[offset[~is_last]] = self.tokens.numpy()[place[~is_last]]
        of_one = counts[last[is_one]]
        members[_runs(offset[last[is_one]], of_one)] = groups.members[_runs(first_of_group, of_one)]
        if in_chains:
            of_chains = counts[last[~is_one]]
            members[_runs(offset[last[~is_one]], of_chains)] = np.concatenate(in_chains)
        return place, np.repeat(np.arange(len(place)), counts), members


def _runs(begin: IntArray, counts: IntArray) -> IntArray:
    """The numbers begin[i], begin[i] + 1, ... (counts[i] of them) for each i, one after another."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(begin - (ends - counts), counts)
