"""Windows of the data: rows whose documents are scored together, sorted by length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...prior.prior import Prior
from ...stores.journal.frames import Array
from ...tokens.documents import ranges
from ...tools.datafiles.documents import Documents, find_documents, tokenize
from ...tools.datafiles.rows import Batch, Data, Row

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
    data: Data, prior: Prior, *, batch_tokens: int, shard: tuple[int, int]
) -> Iterator[Window]:
    """Read the data, some rows at a time.

    Args:
        data: rows with `input_ids` or `text`.
        prior: its tokenizer makes tokens of text; it must be able to score the documents.
        batch_tokens: how many are scored at once.
        shard: I and N, to read the I-th of N parts.

    Raises:
        UnusableError: a row can't be used.
    """
    gathered: list[tuple[Batch, Documents, Array, int]] = []
    num_tokens = 0
    for number, batch in enumerate(data.batches()):
        if number % shard[1] != shard[0]:
            continue
        # The rows as they were read are kept: which column was there matters when they are written.
        tokenized = Batch([dict(row) for row in batch.rows], batch.names)
        added = tokenize(data, tokenized, prior.tokenizer)
        documents = find_documents(data, tokenized)
        _check_scorable(data, tokenized, documents, prior)
        num_from_text = sum(one is not None for one in added)
        gathered.append((batch, documents, _loss_of(data, tokenized, documents), num_from_text))
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


def _loss_of(data: Data, batch: Batch, documents: Documents) -> Array:
    """(M,) bool: which tokens have a label, as TRL's SFTTrainer makes labels.

    It takes `labels` as they are. Without them, a token has a label where all masks that the row
    has are 1.
    """
    row_of_token = documents.row_of_token
    borders = np.searchsorted(row_of_token, np.arange(len(batch.rows) + 1))
    has_loss = np.ones(len(row_of_token), bool)
    for number, (row, ids) in enumerate(zip(batch.rows, documents.ids, strict=True)):
        of_row = slice(borders[number], borders[number + 1])
        place, name = documents.place[of_row], batch.names[number]
        labels = _column(data, row, "labels", len(ids), name)
        if labels is not None:
            wrong = (labels != -100) & (labels != ids)
            wrong[np.setdiff1d(np.arange(len(ids)), place)] = False
            if wrong.any():
                at = int(np.flatnonzero(wrong)[0])
                raise data.error(
                    f"labels of {name} must be -100 or equal to input_ids (the model shifts them), "
                    f"got label {labels[at]} at token {ids[at]}, place {at}"
                )
            has_loss[of_row] = labels[place] != -100
            continue
        for column in ("completion_mask", "assistant_masks"):
            mask = _column(data, row, column, len(ids), name)
            if mask is not None:
                has_loss[of_row] &= mask[place] != 0
    return has_loss


def _column(data: Data, row: Row, column: str, T: int, name: str) -> Array | None:
    value: Any = row.get(column)
    if value is None:
        return None
    array = np.asarray(value)
    if array.shape != (T,) or (T and array.dtype.kind not in "iub"):
        raise data.error(
            f"{column} of {name} must hold a whole number for each of its {T} tokens, got "
            f"{str(value)[:40]}; save the data that will be trained on, "
            "trainer.train_dataset.save_to_disk(FOLDER), and give --data FOLDER"
        )
    return array.astype(np.int64)


def _check_scorable(data: Data, batch: Batch, documents: Documents, prior: Prior) -> None:
    """Raise, with the row's name, where the prior can't score a document."""
    longest = prior.max_length
    too_long = documents.lengths > (np.inf if longest is None else longest)
    if too_long.any():
        number = int(np.flatnonzero(too_long)[0])
        raise data.error(
            f"a document of {batch.names[documents.row[number]]} has {documents.lengths[number]} "
            f"tokens, more than the prior's {longest} positions; shorten it as in training, or "
            "use a prior with a longer context"
        )
    outside = documents.tokens >= prior.vocab_size
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        raise data.error(
            f"{batch.names[documents.row_of_token[at]]} has the token {documents.tokens[at]}, "
            f"which is not in the prior's vocabulary, [0, {prior.vocab_size}); the data must be "
            "tokenized by the prior's tokenizer"
        )
