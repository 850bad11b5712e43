"""Edits a batch with a journal: one edit for each document in each generation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..policy import EditPolicy
from ..prior.base import BasePrior
from ..stores.cache import DecisionCache
from ..stores.journal import Journal, Texts, keys_of
from ..stores.ragged import Array
from ..tokens.result import EditResult
from ..tokens.token_batch import TokenBatch
from .edit import edit_batch


@dataclass(frozen=True)
class BatchEdit:
    """The edit of a batch."""

    final: EditResult  # to train on; with a journal, its changes are those of all generations
    edited: EditResult | None  # just now; None: the journal had the edits of all documents
    num_replayed: int = 0  # tokens of documents whose edit was in the journal


@torch.no_grad()
def edit_with_journal(
    prior: BasePrior,
    journal: Journal,
    source: TokenBatch,
    *,
    policy: EditPolicy,
    step: int,
    num_sampled: int = 0,
    cache: DecisionCache | None = None,
) -> BatchEdit:
    """Bring each document to its state after the last generation, and edit it or replay its edit.

    The result is read from the journal, so that it is the same as a replay. Each document is drawn
    for once, as in epoch 0. `source` is the batch before any edit, on the host, and `step` the
    number of updates of the trainee before it; `num_sampled` and `cache` are as for `edit_tokens`.

    Raises:
        ValueError: as `edit_tokens`; or the journal's generation was made with another prior or
            policy, or it has later ones.
    """
    generation = prior.generation + 1
    journal.start_generation(generation, prior.fingerprint_for(policy), policy.record())
    documents = source.documents
    keys = keys_of(source.tokens, documents.lengths)
    lengths = np.asarray(documents.lengths)

    known = journal.look_up(keys, generation).known
    # A text with edit=False may also be in an edited dataset, whose edit must not be used here.
    raw = np.zeros(len(source.tokens), bool) if source.edit is None else ~source.edit.numpy()
    num_editable = np.bincount(documents.document.numpy()[~raw], minlength=len(keys))
    new = np.flatnonzero(~known & (num_editable > 0))
    new = new[np.unique(keys[new], return_index=True)[1]]  # a batch may hold a document twice
    new.sort()
    texts = Texts.of(source.tokens.numpy(), documents.start.numpy())
    journal.bring_forward(texts, keys, generation - 1)
    edited = None
    if policy.target != "both" and texts.removed.any():
        raise ValueError(
            f"target={policy.target!r} keeps the source, and an earlier generation of this journal "
            "removed tokens (drop_below); use target='both', or a new journal"
        )
    if len(new):
        edits = texts
        if policy.target == "labels":  # inputs stay the source, so each generation edits that
            edits = Texts.of(source.tokens.numpy(), documents.start.numpy())
        batch = _batch_of(source, edits, new, prior.pad_id)
        edited = edit_batch(
            prior, policy, batch, epoch=0, generation=prior.generation, num_sampled=num_sampled,
            cache=cache,
        )  # fmt: skip
        before = torch.from_numpy(texts.tokens[_members(source, texts, new)])
        _record(journal, keys[new], lengths[new], batch, before, edited, step)
    else:
        # All ranks must call a sharded prior equally often.
        prior.run_gathered(prior.make_idle_passes)
    journal.bring_forward(texts, keys, generation, since=generation - 1)
    removed = torch.from_numpy(texts.removed & ~raw)
    # A token that was changed and then removed counts as removed.
    tokens = torch.where(
        removed | torch.from_numpy(raw), source.tokens, torch.from_numpy(texts.tokens)
    )
    return BatchEdit(
        final=source.revised(tokens, removed, pad_id=prior.pad_id, target=policy.target),
        edited=edited,
        num_replayed=int(lengths[known].sum()),
    )


def _members(source: TokenBatch, texts: Texts, chosen: Array) -> Array:
    """The remaining tokens of the chosen documents, as places among the batch's tokens."""
    is_chosen = np.zeros(source.documents.num_documents, dtype=bool)
    is_chosen[chosen] = True
    return np.flatnonzero(is_chosen[source.documents.document.numpy()] & ~texts.removed)


def _batch_of(source: TokenBatch, texts: Texts, chosen: Array, pad_id: int) -> TokenBatch:
    """The chosen documents with the tokens in `texts`, one to a row, padded on the right.

    It is the batch itself if that holds just these tokens.
    """
    here = _members(source, texts, chosen)
    tokens = texts.tokens[here]
    if len(here) == len(source.tokens) and np.array_equal(tokens, source.tokens.numpy()):
        return source
    row = np.full(source.documents.num_documents, -1)
    row[chosen] = np.arange(len(chosen))
    row = row[source.documents.document.numpy()[here]]
    length = np.bincount(row, minlength=len(chosen))
    column = np.arange(len(here)) - (np.cumsum(length) - length)[row]

    def lay_out(values: Array, padding: int) -> Tensor:
        rows = np.full((len(chosen), int(length.max())), padding)
        rows[row, column] = values
        return torch.from_numpy(rows)

    labels = None
    if source.labels is not None:
        of_source = source.labels.reshape(-1)[source.documents.index].numpy()[here]
        labels = lay_out(np.where(of_source == -100, -100, tokens), -100)
    mask = lay_out(np.ones_like(tokens), 0)
    edit = None if source.edit is None else lay_out(source.edit.numpy()[here], 0) != 0
    return TokenBatch.of(lay_out(tokens, pad_id), mask, None, labels, edit=edit)


def _record(
    journal: Journal,
    keys: Array,
    lengths: Array,
    batch: TokenBatch,
    before: Tensor,
    edited: EditResult,
    step: int,
) -> None:
    """Record the edits of a batch's n documents, which had the (M,) tokens `before`."""
    documents = batch.documents

    def of_tokens(rows: Tensor) -> Tensor:
        return rows.reshape(-1)[documents.index]

    new = torch.where(of_tokens(edited.dropped), -1, of_tokens(_before_shrinking(edited, batch)))
    touched = new != before
    # A document without a scored token needs no record. But with target "labels", an edit may undo
    # a label of an earlier generation.
    undone = touched
    if batch.labels is not None:
        undone = touched & (of_tokens(batch.labels) != -100)
    worth = torch.zeros(len(keys), dtype=torch.bool)
    worth[documents.document[of_tokens(edited.scored) | undone]] = True
    touched &= worth[documents.document]
    changes = torch.stack([documents.position, before, new], dim=1)[touched].numpy()
    counts = torch.bincount(documents.document[touched], minlength=len(keys)).numpy()
    recorded = worth.numpy()
    journal.record(
        keys[recorded], lengths[recorded], counts[recorded], changes, step,
        scored=int(edited.scored.sum()),
        selected=int(edited.selected.sum()),
        changed=int(edited.changed.sum()),
    )  # fmt: skip


def _before_shrinking(edited: EditResult, batch: TokenBatch) -> Tensor:
    """The new tokens at the places of the old ones: (B, T) int64."""
    if edited.source is None:
        return edited.tokens.long()
    # Padding goes to a column of its own.
    wide = torch.nn.functional.pad(batch.input_ids, (0, 1))
    T = batch.input_ids.shape[1]
    wide.scatter_(1, torch.where(edited.source < 0, T, edited.source), edited.tokens.long())
    return wide[:, :T]
