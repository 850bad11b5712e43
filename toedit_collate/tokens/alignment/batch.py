"""The documents of a batch on both sides, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..documents import Documents
from .byte_tokenizer import IntArray
from .document import AlignedDocument
from .groups import Groups


@dataclass(frozen=True)
class Requests:
    """What the prior is to predict so that n tokens of the trainee can be scored.

    A token asks for each token of its chain: for the prior's own token at all but the last, and for
    a group of ids at the last.

    Attributes:
        place: (R,) int64, which of the prior's tokens, ascending.
        token: (R,) int64, for which of the n it is asked, ascending.
        member_row: (m,) int64, ascending: of which request each member of a group is.
        members: (m,) int64, ids of the prior.
    """

    place: IntArray
    token: IntArray
    member_row: IntArray
    members: IntArray


@dataclass(frozen=True)
class AlignedBatch:
    """A batch of M tokens of the trainee, in N documents, of which the prior has K.

    Attributes:
        documents: the prior's.
        tokens: (K,) int64, theirs.
        begin: (M,) int64, which of the K begins where a token begins; -1: none, or it can't be
            predicted.
        length: (M,) int64, of the chain; 0 where `begin` is -1.
        chain: (M,) int64, which of `groups` is that of the chain; -1 for chains of one.
        groups: of the last tokens of longer chains.
        num_disagreeing: documents whose bytes do not agree.
        num_cut: documents with more tokens than the prior has positions.
    """

    documents: Documents
    tokens: Tensor
    begin: IntArray
    length: IntArray
    chain: IntArray
    groups: list[IntArray]
    num_disagreeing: int
    num_cut: int

    @classmethod
    def of(cls, aligned: Sequence[AlignedDocument], max_length: int | None) -> AlignedBatch:
        """Put documents behind one another.

        Args:
            aligned: the documents.
            max_length: positions of the prior; tokens behind the last can't be predicted.
        """
        whole = [len(one.prior_tokens) for one in aligned]
        lengths = [size if max_length is None else min(size, max_length) for size in whole]
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - np.array(lengths, dtype=np.int64)
        begins, chain_lengths, chains = [], [], []
        groups: list[IntArray] = []
        for one, start, size in zip(aligned, starts.tolist(), lengths, strict=True):
            chain = np.full(len(one.begin), -1, dtype=np.int64)
            several = np.flatnonzero(one.length > 1)
            chain[several] = len(groups) + np.arange(len(several))
            groups += one.groups
            # The first token of a document has nothing before it from which to predict it.
            known = (one.begin > 0) & (one.begin + one.length <= size)
            begins.append(np.where(known, one.begin + start, -1))
            chain_lengths.append(np.where(known, one.length, 0))
            chains.append(np.where(known, chain, -1))
        documents = Documents(
            index=torch.arange(int(ends[-1])),
            document=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
            position=torch.from_numpy(_runs(np.zeros(len(lengths), np.int64), np.array(lengths))),
            start=torch.from_numpy(starts),
            lengths=lengths,
        )
        kept = [one.prior_tokens[:size] for one, size in zip(aligned, lengths, strict=True)]
        return cls(
            documents=documents,
            tokens=torch.from_numpy(np.concatenate(kept)),
            begin=np.concatenate(begins),
            length=np.concatenate(chain_lengths),
            chain=np.concatenate(chains),
            groups=groups,
            num_disagreeing=sum(not one.agrees for one in aligned),
            num_cut=sum(a > b for a, b in zip(whole, lengths, strict=True)),
        )

    def requests(self, where: IntArray, ids: IntArray, groups: Groups) -> Requests:
        """What has to be predicted for n of the M tokens.

        Args:
            where: (n,) int64, ascending; each has a `begin`.
            ids: (n,) int64, these tokens of the trainee.
            groups: of chains of one.
        """
        length, begin = self.length[where], self.begin[where]
        place = _runs(begin, length)
        token = np.repeat(np.arange(len(where)), length)
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
        return Requests(place, token, np.repeat(np.arange(len(place)), counts), members)


def _runs(begin: IntArray, counts: IntArray) -> IntArray:
    """The numbers begin[i], begin[i] + 1, ... (counts[i] of them) for each i, one after another."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(begin - (ends - counts), counts)
