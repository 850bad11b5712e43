"""A batch as tensors of B rows, as the documents in it, and as what became of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Documents, find_documents
from .shrink import positions_left, shrink_rows
from .uniforms import document_keys


@dataclass(frozen=True)
class EditResult:
    """What `edit_tokens` did to a batch of B rows of T tokens.

    With `drop_below`, rows lose tokens: then `input_ids`, `labels`, `attention_mask` and
    `position_ids` are (B, T') with T' <= T. The masks speak of the batch as it was given.

    Attributes:
        input_ids: (B, T) int64, the edited tokens.
        labels: as given, with the new token wherever a token changed and its label was not -100;
            None if none were given.
        attention_mask: as given, or of the shrunken rows.
        position_ids: as given, or of the shrunken rows.
        selected: (B, T) bool, tokens in the policy's region, which were resampled.
        changed: (B, T) bool, selected tokens whose resample is another token.
        dropped: (B, T) bool, tokens removed by `drop_below`.
        scored: (B, T) bool, tokens to which the policy was applied.
        source: (B, T') int64, where in its row each token of `input_ids` was, -1 at padding; None
            where no token was removed.
        logprob: None, or (B, T) float32: log P(x_i | x_<i) in nats at every token but the first of
            each document; NaN there and at padding.
        sample_logprob: (S,) float32, exact log P in nats of some scored tokens (`num_sampled`).
    """

    input_ids: Tensor
    labels: Tensor | None
    attention_mask: Tensor | None
    position_ids: Tensor | None
    selected: Tensor
    changed: Tensor
    dropped: Tensor
    scored: Tensor
    source: Tensor | None
    logprob: Tensor | None
    sample_logprob: Tensor


@dataclass(frozen=True)
class TokenBatch:
    """A batch on the prior's device, as documents and as the tensors that came."""

    input_ids: Tensor
    labels: Tensor | None
    documents: Documents
    tokens: Tensor
    given_ids: Tensor
    given_mask: Tensor | None
    given_positions: Tensor | None

    @classmethod
    def on(
        cls,
        device: torch.device,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        labels: Tensor | None,
    ) -> TokenBatch:
        """Put a batch on `device`, and find its documents."""

        def there(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        ids = input_ids.to(device=device, dtype=torch.int64)
        documents = find_documents(ids, there(attention_mask), there(position_ids))
        return cls(
            input_ids=ids,
            labels=there(labels),
            documents=documents,
            tokens=ids.reshape(-1)[documents.index],
            given_ids=input_ids,
            given_mask=attention_mask,
            given_positions=position_ids,
        )

    @property
    def keys(self) -> Tensor:
        """(N,) int64, a key of each document's content."""
        documents = self.documents
        return document_keys(
            self.tokens, documents.document, documents.position, documents.num_documents
        )

    def result(
        self,
        *,
        new_tokens: Tensor,
        selected: Tensor,
        dropped: Tensor,
        scored: Tensor,
        logprob: Tensor | None,
        sample_logprob: Tensor,
        pad_id: int,
    ) -> EditResult:
        """Bring values of the M tokens back into the (B, T) batch, on the device it came from."""
        home = self.given_ids.device
        changed = self._spread(new_tokens != self.tokens, False)
        input_ids = self.input_ids.clone()
        input_ids.view(-1)[self.documents.index] = new_tokens
        labels = self.labels
        if labels is not None:
            labels = torch.where(changed & (labels != -100), input_ids.to(labels.dtype), labels)
        mask, positions, source = self.given_mask, self.given_positions, None
        if dropped.any():
            input_ids, labels, mask, positions, source = self._shrink(
                dropped, input_ids, labels, pad_id
            )
        return EditResult(
            input_ids=input_ids.to(device=home, dtype=self.given_ids.dtype),
            labels=None if labels is None else labels.to(home),
            attention_mask=None if mask is None else mask.to(home),
            position_ids=None if positions is None else positions.to(home),
            selected=self._spread(selected, False).to(home),
            changed=changed.to(home),
            dropped=self._spread(dropped, False).to(home),
            scored=self._spread(scored, False).to(home),
            source=None if source is None else source.to(home),
            logprob=None if logprob is None else self._spread(logprob, math.nan).to(home),
            sample_logprob=sample_logprob.to(home),
        )

    def revised(self, new_tokens: Tensor, dropped: Tensor, *, pad_id: int) -> EditResult:
        """The batch with other tokens, and without some: both (M,)."""
        none = torch.zeros_like(dropped)
        return self.result(
            new_tokens=new_tokens,
            selected=none,
            dropped=dropped,
            scored=none,
            logprob=None,
            sample_logprob=torch.zeros(0),
            pad_id=pad_id,
        )

    def _spread(self, values: Tensor, background: float) -> Tensor:
        spread = torch.full_like(self.input_ids, background, dtype=values.dtype)
        spread.view(-1)[self.documents.index] = values
        return spread

    def _shrink(
        self, dropped: Tensor, input_ids: Tensor, labels: Tensor | None, pad_id: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]:
        padding = self.given_ids[self.given_mask == 0] if self.given_mask is not None else None
        if padding is not None and padding.numel():
            pad_id = int(padding[0])
        positions = self._spread(positions_left(self.documents, dropped), 0)
        place = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        columns = {
            "input_ids": (input_ids, pad_id),
            "position_ids": (positions, 0),
            "source": (place, -1),
        }
        if labels is not None:
            columns["labels"] = (labels, -100)
        shrunk, real = shrink_rows(self.documents, dropped, columns, input_ids.shape[1])
        mask: Tensor | None = None
        if self.given_mask is not None:
            mask = real.to(self.given_mask.dtype)
        elif self.given_positions is None and not real.all():
            # Packed rows keep to position_ids (padding then is a document of one token at
            # position 0, as TRL has it): a 2-D mask beside them would hide their borders.
            mask = real.to(torch.int64)
        kept_positions = None if self.given_positions is None else shrunk["position_ids"]
        return shrunk["input_ids"], shrunk.get("labels"), mask, kept_positions, shrunk["source"]
