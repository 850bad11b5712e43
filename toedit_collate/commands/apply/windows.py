"""Windows of the data: rows whose documents are scored together, sorted by length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...data import Batch, Data, Documents, Preparation, find_documents, labels_of, tokenize
from ...data.documents import check_ids
from ...prior.prior import Prior
from ...stores.ragged import Array, ranges

# Documents are sorted by length among so many times the tokens that are scored at once.
BATCHES_OF_WINDOW = 16


@dataclass(frozen=True)
class Window:
    """Some rows of the data, and their N documents of M tokens.

    Attributes:
        batches: the rows, as they were read.
        sizes: tokens of each of the batches.
        tokens: (M,) int64, of all documents, one after another.
        has_loss: (M,) bool, tokens that have a label.
        lengths: (N,) int64, of the documents.
        num_from_text: rows that were tokenized here.
    """

    batches: list[Batch]
    sizes: list[int]
    tokens: Array
    has_loss: Array
    lengths: Array
    num_from_text: int

    def padded(self, batch_tokens: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Array]]:
        """The documents, those of similar length together, one to a row.

        Args:
            batch_tokens: the most tokens in a batch, padding included; a longer document comes
                alone.

        Yields:
            input_ids: (B, T) int64, padded on the right.
            real: (B, T) bool, False at padding.
            labels: (B, T) int64, -100 at padding and where a token has no loss.
            members: (m,) int64, which of the M tokens these are, row by row.
        """
        start = np.cumsum(self.lengths) - self.lengths
        # The longest first: what does not fit into memory fails at once.
        order = np.argsort(-self.lengths, kind="stable")
        done = 0
        while done < len(order):
            T = int(self.lengths[order[done]])
            chosen = order[done : done + max(1, batch_tokens // T)]
            done += len(chosen)
            members = ranges(start[chosen], self.lengths[chosen])
            real = torch.arange(T) < torch.from_numpy(self.lengths[chosen]).unsqueeze(-1)
            input_ids = torch.zeros(real.shape, dtype=torch.int64)
            input_ids[real] = torch.from_numpy(self.tokens[members])
            labels = torch.full_like(input_ids, -100)
            labels[real] = torch.from_numpy(
                np.where(self.has_loss[members], self.tokens[members], -100)
            )
            yield input_ids, real, labels, members


def windows(
    data: Data, prior: Prior, prep: Preparation, *, batch_tokens: int, shard: tuple[int, int]
) -> Iterator[Window]:
    """Read the data, some rows at a time.

    Args:
        data: rows with tokens, text or chats.
        prior: its tokenizer makes tokens of text; it must be able to score the documents.
        prep: how rows become tokens, and longer documents windows.
        batch_tokens: how many are scored at once.
        shard: I and N, to read the I-th of N parts.

    Raises:
        UnusableError: a row can't be used.
    """
    gathered: list[tuple[Batch, Documents, Array, int]] = []
    num_tokens = 0
    num_read = 0
    for whole in data.batches():
        # Row by row in turn: the parts are of one size, and so are their documents on the whole.
        mine = slice((shard[0] - num_read) % shard[1], None, shard[1])
        batch = Batch(whole.rows[mine], whole.names[mine])
        num_read += len(whole.rows)
        if not batch.rows:
            continue
        # The rows as they were read are kept: which column was there matters when they are written.
        tokenized = Batch([dict(row) for row in batch.rows], batch.names)
        num_from_text = sum(row.get("input_ids") is None for row in batch.rows)
        tokenize(data, tokenized, prior.tokenizer, prep)
        documents = find_documents(data, tokenized)
        has_loss = labels_of(data, tokenized, documents, prep) != -100
        documents = documents.cut(prep.window)
        _check_scorable(data, tokenized, documents, prior)
        gathered.append((batch, documents, has_loss, num_from_text))
        num_tokens += len(documents.tokens)
        if num_tokens >= BATCHES_OF_WINDOW * batch_tokens:
            yield _window(gathered)
            gathered, num_tokens = [], 0
    if gathered:
        yield _window(gathered)


def _window(gathered: list[tuple[Batch, Documents, Array, int]]) -> Window:
    batches, documents, has_loss, num_from_text = zip(*gathered, strict=True)
    return Window(
        batches=list(batches),
        sizes=[len(of.tokens) for of in documents],
        tokens=np.concatenate([of.tokens for of in documents]),
        has_loss=np.concatenate(has_loss),
        lengths=np.concatenate([of.lengths for of in documents]),
        num_from_text=sum(num_from_text),
    )


def _check_scorable(data: Data, batch: Batch, documents: Documents, prior: Prior) -> None:
    """Raise, with the row's name, where the prior can't score a document."""
    longest = prior.max_length
    too_long = documents.lengths > (np.inf if longest is None else longest)
    if too_long.any():
        number = int(np.flatnonzero(too_long)[0])
        raise data.error(
            f"a document of {batch.names[documents.row[number]]} has {documents.lengths[number]} "
            f"tokens, more than the prior's {longest} positions; cut it into windows by "
            f"--max-length {longest}, or shorten it as in training"
        )
    check_ids(data, batch, documents, prior.vocab_size)
