"""The aligned documents of a batch, as arrays."""

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
    """What the prior must predict to score n tokens of the trainee: R requests.

    A token makes one request for each token of its chain: for the prior's own token at all but the
    last, and for a group of ids at the last.
    """

    place: IntArray  # (R,) int64, which of the prior's tokens, ascending
    token: IntArray  # (R,) int64, which of the n tokens makes the request, ascending
    member_row: IntArray  # (m,) int64, ascending: the request of each member of a group
    members: IntArray  # (m,) int64, ids of the prior


@dataclass(frozen=True)
class AlignedBatch:
    """A batch of M tokens of the trainee in N documents, for which the prior has K tokens."""

    documents: Documents  # of the prior's tokens
    tokens: Tensor  # (K,) int64, the prior's
    # (M,) int64, which of the K begins where a token begins; -1: none, or it can't be predicted
    begin: IntArray
    length: IntArray  # (M,) int64, of the chain; 0 where `begin` is -1
    chain: IntArray  # (M,) int64, the index into `groups`; -1 for chains of one
    groups: list[IntArray]  # of the last tokens of longer chains
    sources: Sequence[AlignedDocument]  # the documents, one by one
    num_disagreeing: int  # number of documents whose bytes differ
    num_cut: int  # number of documents with more tokens than the prior has positions

    @classmethod
    def of(cls, aligned: Sequence[AlignedDocument], max_length: int | None) -> AlignedBatch:
        """Join documents. Tokens after `max_length` positions of the prior can't be predicted."""
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
            sources=aligned,
            num_disagreeing=sum(not one.agrees for one in aligned),
            num_cut=sum(a > b for a, b in zip(whole, lengths, strict=True)),
        )

    def requests(self, where: IntArray, ids: IntArray, groups: Groups) -> Requests:
        """What must be predicted for the tokens `where`, (n,) ascending, with the ids `ids`, (n,).

        Each has a `begin`. `groups` are those of chains of one.
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
