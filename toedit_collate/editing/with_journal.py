"""The edit of a batch with a journal: one edit for each document in each generation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..policy import EditPolicy
from ..prior.protocol import EditingPrior
from ..stores.cache import DecisionCache
from ..stores.journal import Journal
from ..stores.journal.keys import keys_of
from ..stores.journal.replay import Texts
from ..stores.ragged import Array
from ..tokens.result import EditResult
from ..tokens.token_batch import TokenBatch
from .edit import edit_tokens


@dataclass(frozen=True)
class JournaledEdit:
    """A batch as this generation trains on it.

    Attributes:
        final: the batch; `changed` and `dropped` are those of all generations so far.
        edited: what was edited just now, a document to a row; None where the edits of all documents
            were in the journal.
        num_replayed: tokens of documents whose edit was in the journal.
    """

    final: EditResult
    edited: EditResult | None
    num_replayed: int


@torch.no_grad()
def edit_with_journal(
    prior: EditingPrior,
    journal: Journal,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    labels: Tensor | None,
    policy: EditPolicy,
    step: int,
    num_sampled: int,
    cache: DecisionCache | None = None,
) -> JournaledEdit:
    """Bring each document to its state after the last generation, and edit it, or replay its edit.

    What the batch becomes is read back from the journal, so that it is what a replay gives.

    Args:
        prior: of this generation.
        journal: gets what is edited.
        input_ids: as for `edit_tokens`.
        attention_mask: likewise.
        position_ids: likewise.
        labels: likewise.
        policy: likewise; each document is drawn for once, as in epoch 0.
        step: updates of the trainee before this batch.
        num_sampled: as for `edit_tokens`.
        cache: likewise.

    Raises:
        TypeError: as `edit_tokens`.
        ValueError: likewise; or the journal's generation was made with another prior or policy, or
            it has later ones.
    """
    generation = prior.generation + 1
    journal.start_generation(generation, prior.fingerprint, policy.record())
    source = TokenBatch.of(input_ids, attention_mask, position_ids, labels)
    documents = source.documents
    keys = keys_of(source.tokens, documents.lengths)
    lengths = np.asarray(documents.lengths)

    known = journal.look_up(keys, generation).known
    new = np.flatnonzero(~known)
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
        before, mask, row_labels = _as_rows(source, texts, new, prior.pad_id)
        rows = before
        if policy.target == "labels":  # inputs stay the source, so each generation edits that
            as_given = Texts.of(source.tokens.numpy(), documents.start.numpy())
            rows, mask, row_labels = _as_rows(source, as_given, new, prior.pad_id)
        edited = edit_tokens(
            prior,
            rows,
            attention_mask=mask,
            labels=row_labels,
            policy=policy,
            epoch=0,
            generation=prior.generation,
            num_sampled=num_sampled,
            cache=cache,
        )
        _record(journal, keys[new], lengths[new], before, edited, step)
    else:
        prior.run(prior.stand_by)  # as edit_tokens: ranks must call a sharded prior alike
    journal.bring_forward(texts, keys, generation, since=generation - 1)
    removed = torch.from_numpy(texts.removed)
    # A token that was changed and is removed now is removed, as seen from the source.
    tokens = torch.where(removed, source.tokens, torch.from_numpy(texts.tokens))
    return JournaledEdit(
        final=source.revised(tokens, removed, pad_id=prior.pad_id, target=policy.target),
        edited=edited,
        num_replayed=int(lengths[known].sum()),
    )


def _as_rows(
    source: TokenBatch, texts: Texts, chosen: Array, pad_id: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Some documents, one to a row, padded on the right: tokens, attention mask and labels."""
    document = source.documents.document.numpy()
    row = np.full(source.documents.num_documents, -1)
    row[chosen] = np.arange(len(chosen))
    here = np.flatnonzero((row[document] >= 0) & ~texts.removed)
    row = row[document[here]]
    length = np.bincount(row, minlength=len(chosen))
    column = np.arange(len(here)) - (np.cumsum(length) - length)[row]

    def lay_out(values: Array, padding: int) -> Tensor:
        rows = np.full((len(chosen), int(length.max())), padding)
        rows[row, column] = values
        return torch.from_numpy(rows)

    tokens = texts.tokens[here]
    labels = None
    if source.labels is not None:
        of_source = source.labels.reshape(-1)[source.documents.index].numpy()[here]
        labels = lay_out(np.where(of_source == -100, -100, tokens), -100)
    return lay_out(tokens, pad_id), lay_out(np.ones_like(tokens), 0), labels


def _record(
    journal: Journal, keys: Array, lengths: Array, rows: Tensor, edited: EditResult, step: int
) -> None:
    """Put the edits of n documents into the journal; before, they were (n, T) `rows`."""
    new = torch.where(edited.dropped, -1, _before_shrinking(edited, rows))
    touched = new != rows
    document, position = touched.nonzero(as_tuple=True)
    changes = torch.stack([position, rows[touched], new[touched]], dim=1).numpy()
    counts = torch.bincount(document, minlength=len(keys)).numpy()
    # A document without a scored token needs no forward pass, so is not worth a record.
    worth = edited.scored.any(-1).numpy()
    journal.record(
        keys[worth],
        lengths[worth],
        counts[worth],
        changes,
        step,
        scored=int(edited.scored.sum()),
        selected=int(edited.selected.sum()),
    )


def _before_shrinking(edited: EditResult, rows: Tensor) -> Tensor:
    """(n, T): the new tokens, where the old ones were in `rows`."""
    if edited.source is None:
        return edited.tokens
    # Padding goes to a column of its own.
    wide = torch.nn.functional.pad(rows, (0, 1))
    T = rows.shape[1]
    wide.scatter_(1, torch.where(edited.source < 0, T, edited.source), edited.tokens)
    return wide[:, :T]
