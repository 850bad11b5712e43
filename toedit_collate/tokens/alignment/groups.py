"""Which tokens of the prior stand for a token of the trainee."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .byte_tokenizer import ByteTokenizer, IntArray


@dataclass(frozen=True)
class Groups:
    """For each id of the trainee, the ids of the prior of which it is the `first`."""

    # (V,) int64, the first trainee token of the bytes of each id of the prior; -1: none
    first: IntArray
    members: IntArray  # (n,) int64, ids of the prior, group by group, ascending in each
    start: IntArray  # (W + 1,) int64, where the members of each of the W trainee ids begin

    @classmethod
    def of(cls, first: IntArray, size: int) -> Groups:
        """Group the prior's ids by their `first`; `size` is W."""
        order = np.argsort(first, kind="stable")
        order = order[first[order] >= 0]
        counts = np.bincount(first[order], minlength=size)
        return cls(first, order, np.concatenate([[0], np.cumsum(counts)]))


def first_tokens(
    trainee: ByteTokenizer,
    prior: ByteTokenizer,
    covered: bytes = b"",
    special: Mapping[int, int] | None = None,  # the trainee's -> the prior's
) -> IntArray:
    """(V,) int64: the first trainee token of `covered` plus each id of the prior; -1: none."""
    first = np.array(
        [-1 if one is None else trainee.first(covered + one) for one in prior.bytes], dtype=np.int64
    )
    for there, here in (special or {}).items():
        first[here] = there
    return first


class ChainGroups:
    """The groups after covered bytes, each computed when it is first needed. It can be pickled."""

    def __init__(
        self, trainee: ByteTokenizer, prior: ByteTokenizer, special: Mapping[int, int]
    ) -> None:
        self._trainee = trainee
        self._prior = prior
        self._special = special
        ordered = sorted((one, token_id) for token_id, one in enumerate(prior.bytes) if one)
        self._texts = [one for one, _ in ordered]
        self._ids = np.array([token_id for _, token_id in ordered], dtype=np.int64)
        self._known: dict[tuple[bytes, int], IntArray] = {}

    def of(self, covered: bytes, token: int) -> IntArray:
        """(m,) int64, ascending: the prior's ids that make `token` the first after `covered`.

        `covered` is a part of the bytes of `token`, from its beginning.
        """
        known = self._known.get((covered, token))
        if known is not None:
            return known
        whole = self._trainee.bytes[token]
        assert whole is not None
        rest = whole[len(covered) :]
        # In the order of bytes, those that begin with the rest are next to each other.
        begin = bisect.bisect_left(self._texts, rest)
        end = bisect.bisect_right(self._texts, rest, begin, key=lambda text: text[: len(rest)])
        found = [
            place
            for place in range(begin, end)
            if self._trainee.first(covered + self._texts[place]) == token
        ]
        group = np.sort(self._ids[found])
        return self._known.setdefault((covered, token), group)

    def first_after(self, covered: bytes) -> IntArray:
        """`first_tokens` after some bytes, which is slow; special tokens follow no bytes."""
        special = {} if covered else self._special
        return first_tokens(self._trainee, self._prior, covered, special)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_known": {}}
