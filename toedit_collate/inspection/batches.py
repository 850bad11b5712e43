"""Documents in batches of similar length, for one pass of the prior each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch

from ..tokens.token_batch import TokenBatch

# Documents are sorted by length among so many times the tokens that are scored at once.
_BATCHES_OF_WINDOW = 8


class Tokenized(Protocol):
    """A document as token ids, with -100 where a token has no label."""

    @property
    def ids(self) -> list[int]:
        """T token ids."""
        ...

    @property
    def labels(self) -> list[int]:
        """T labels."""
        ...


D = TypeVar("D", bound=Tokenized)


def in_batches(documents: Iterable[D], batch_tokens: int) -> Iterator[list[D]]:
    """Group documents of similar length; those of one token are left out, they have no score.

    Args:
        documents: read as they come; only some batches' worth is held.
        batch_tokens: the most tokens of a batch, padding included; a longer document comes alone.
    """
    gathered: list[D] = []
    num_tokens = 0
    for document in documents:
        if len(document.ids) < 2:
            continue
        gathered.append(document)
        num_tokens += len(document.ids)
        if num_tokens >= _BATCHES_OF_WINDOW * batch_tokens:
            yield from _by_length(gathered, batch_tokens)
            gathered, num_tokens = [], 0
    yield from _by_length(gathered, batch_tokens)


def _by_length(documents: list[D], batch_tokens: int) -> Iterator[list[D]]:
    documents.sort(key=lambda document: -len(document.ids))  # stable: equal lengths keep order
    done = 0
    while done < len(documents):
        count = max(1, batch_tokens // len(documents[done].ids))
        yield documents[done : done + count]
        done += count


def as_token_batch(documents: Sequence[Tokenized]) -> TokenBatch:
    """Documents one to a row, padded on the right."""
    T = max(len(document.ids) for document in documents)
    input_ids = torch.zeros(len(documents), T, dtype=torch.int64)
    labels = torch.full_like(input_ids, -100)
    mask = torch.zeros_like(input_ids)
    for row, document in enumerate(documents):
        length = len(document.ids)
        input_ids[row, :length] = torch.tensor(document.ids)
        labels[row, :length] = torch.tensor(document.labels)
        mask[row, :length] = 1
    return TokenBatch.of(input_ids, mask, None, labels)
