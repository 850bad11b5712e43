"""TokenBatch: a checked batch on the host, and the documents in it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..policy import Context, Target
from ..transfer import fetch, send
from .checks import check_labels, check_mask, check_tensors
from .documents import Documents, document_ids_of, find_documents, mask_of_padding, mask_of_pairs
from .draws import Draws, Words, document_keys, token_uniforms
from .removal import remaining_columns, remaining_positions, take_columns
from .result import EditResult, count_draws, most_drawn


@dataclass(frozen=True)
class TokenBatch:
    """A batch of B rows of T tokens on the host, with N documents of M tokens.

    It is prepared while the device is busy with other work.
    """

    input_ids: Tensor  # (B, T) int64
    mask: Tensor | None  # (B, T), 0 at padding, 1 or the number of the document elsewhere; or None
    labels: Tensor | None  # (B, T), or None
    documents: Documents  # where the M tokens are
    tokens: Tensor  # (M,) int64
    dtype: torch.dtype  # of `input_ids` as given
    given_mask: Tensor | None  # `attention_mask` as given
    given_positions: Tensor | None  # `position_ids` as given
    document_ids: Tensor | None  # (B, T) int64, the documents as other keys number them; or None
    output_device: torch.device  # where results go
    # shortened rows are padded to such a length; None: to the longest
    pad_to_multiple_of: int | None = None
    # (M,) bool, False at tokens that no policy may change; None: no such tokens
    edit: Tensor | None = None
    # documents cut into what the prior scores by itself (`in_context`); None: whole documents
    pieces: Documents | None = None

    @classmethod
    def of(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        labels: Tensor | None,
        *,
        document_ids: Tensor | None = None,
        edit: Tensor | None = None,
        tokenizer: Any = None,
        output_device: torch.device | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> TokenBatch:
        """Check a batch, copy it to the host, and find its documents.

        Args:
            input_ids: (B, T), as in `edit_tokens`, like the next three.
            attention_mask: (B, T) or (B, 1, T, T), or None.
            position_ids: (B, T) or None.
            labels: (B, T) or None.
            document_ids: (B, T) int64 on the host, the number of each token's document; or None.
            edit: (B,) or (B, T) bool, False for rows or tokens to leave alone; or None.
            tokenizer: finds padding where `attention_mask` is None; see `mask_of_padding`.
            output_device: where results go; None: the device of `input_ids`.
            pad_to_multiple_of: pads shortened rows to such a length; None: to the longest row.

        Raises:
            TypeError: a tensor has the wrong type.
            ValueError: shapes differ; a label is neither -100 nor the token.
        """
        check_tensors(input_ids, attention_mask, position_ids, labels, edit)
        mask_2d = attention_mask
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            mask_2d = mask_of_pairs(attention_mask, input_ids.shape)
        ids, mask, positions, row_labels, may_edit = fetch(
            input_ids, mask_2d, position_ids, labels, edit
        )
        check_mask(mask)
        check_labels(ids, row_labels, mask)
        ids = ids.to(torch.int64).contiguous()
        if mask is not None and mask.is_floating_point():
            mask = mask != 0  # numpy knows no bfloat16
        elif mask is None and tokenizer is not None:
            is_packed = position_ids is not None or document_ids is not None
            mask = mask_of_padding(ids, row_labels, tokenizer, is_packed=is_packed)
        if positions is not None:
            positions = positions.to(torch.int64)
        documents = find_documents(ids, mask, positions, document_ids)
        if may_edit is not None:
            may_edit = may_edit.view(len(ids), -1).expand(ids.shape).reshape(-1)[documents.index]
        return cls(
            input_ids=ids,
            mask=mask,
            labels=row_labels,
            documents=documents,
            tokens=ids.reshape(-1)[documents.index],
            dtype=input_ids.dtype,
            given_mask=attention_mask,
            given_positions=position_ids,
            document_ids=document_ids,
            output_device=input_ids.device if output_device is None else output_device,
            pad_to_multiple_of=pad_to_multiple_of,
            edit=may_edit,
        )

    @classmethod
    def collated(cls, batch: Mapping[str, Any], **settings: Any) -> TokenBatch:
        """Read a collated batch, whichever keys mark its documents and labels.

        `settings` are `tokenizer`, `output_device` and `pad_to_multiple_of` of `of`. Raises what
        `of` raises, and a ValueError where a key marks documents ambiguously.
        """
        ids, mask, labels = (batch.get(k) for k in ("input_ids", "attention_mask", "labels"))
        positions = batch.get("position_ids")
        document_ids = None
        if isinstance(ids, Tensor) and ids.dim() == 2:  # else `of` refuses it
            if isinstance(positions, Tensor) and positions.shape[0] == 1:
                positions = positions.expand(ids.shape)
            document_ids = document_ids_of(batch)
        assert ids is not None
        return cls.of(
            ids, mask, positions, labels, document_ids=document_ids, edit=batch.get("edit"),
            **settings,
        )  # fmt: skip

    def in_context(self, context: Context, eos_id: int | None) -> TokenBatch:
        """The batch, with what the prior reads before a token cut to `EditPolicy.context`.

        Attention, draws, journals and caches still use whole documents.

        Raises:
            ValueError: "text" without an end-of-text token, or "answer" without labels.
        """
        if context == "document":
            return self
        begins = torch.zeros(len(self.tokens), dtype=torch.bool)
        if context == "text":
            if eos_id is None:
                raise ValueError(
                    "context='text' needs the eos_token of a tokenizer; give the prior a tokenizer "
                    "with one, or use context='document'"
                )
            begins[1:] = self.tokens[:-1] == eos_id
        else:
            if self.labels is None:
                raise ValueError(
                    "context='answer' needs labels, which mark the answers, and the batch has "
                    "none; give labels, or use context='document'"
                )
            learned = self.labels.reshape(-1)[self.documents.index] != -100
            begins[1:] = learned[1:] != learned[:-1]
        return dataclasses.replace(self, pieces=self.documents.cut(begins))

    @property
    def contexts(self) -> Documents:
        """What the prior scores by itself: documents, or pieces of them."""
        return self.documents if self.pieces is None else self.pieces

    @property
    def unknown_padding(self) -> int | None:
        """A token that seems to pad rows although nothing marks padding; None: there is none."""
        marks = (self.mask, self.given_positions, self.document_ids)
        if self.labels is None or any(mark is not None for mark in marks):
            return None
        ends = self.input_ids[:, -2:]
        padded = (ends == ends[:, -1:]).all(-1) & (self.labels[:, -2:] == -100).all(-1)
        return int(ends[padded][0, -1]) if ends.shape[1] == 2 and padded.any() else None

    def uniforms(self, where: Tensor, draws: Draws, num_draws: int = 1) -> Tensor:
        """Draws for n of the M tokens: (n,) float64 in [0, 1); (n, num_draws) for several.

        Several draws of a token are sorted: only their counts matter, and sorted numbers take less
        time to look up.
        """
        chosen, documents = where.numpy(), self.documents
        document = documents.document.numpy()[chosen]
        position = documents.position.numpy()[chosen]
        uniforms = token_uniforms(self._keys, document, position, draws, num_draws)
        if num_draws > 1:
            uniforms.sort(axis=-1)
        return torch.from_numpy(uniforms)

    @functools.cached_property
    def _keys(self) -> Words:
        document, position = self.documents.document.numpy(), self.documents.position.numpy()
        return document_keys(self.tokens.numpy(), document, position, self.documents.num_documents)

    def result(
        self,
        *,
        where: Tensor,
        new_tokens: Tensor,
        selected: Tensor,
        scored: Tensor,
        dropped: Tensor | None = None,
        logprob: Tensor | None = None,
        sample_logprob: Tensor,
        pad_id: int,
        target: Target = "both",
    ) -> EditResult:
        """Write the values of n of the M tokens back into the rows, on the output device.

        Args:
            where: (n,) int64 on the host, which of the M tokens.
            new_tokens: (n,) int64 on any device, like the tensors below; (n, K) for K draws.
            selected: (n,) bool.
            scored: (M,) bool, on the host.
            dropped: (n,) bool; None: no token is removed.
            logprob: (n,) float32, or None.
            sample_logprob: (S,) float32.
            pad_id: pads shortened rows.
            target: of the policy.
        """
        if dropped is not None and self.given_mask is not None and self.given_mask.dim() == 4:
            raise ValueError(
                "drop_below and drop_above can't be combined with an attention_mask of four "
                "dimensions; mark documents by position_ids that restart at 0"
            )
        device, shape = self.output_device, self.input_ids.shape
        if device.type == "cpu":  # one wait for all that the prior's device has
            new_tokens, selected, sample_logprob, dropped = fetch(
                new_tokens, selected, sample_logprob, dropped
            )
        counted = None
        if new_tokens.dim() == 2:
            counted = count_draws(send(new_tokens, device))
            new_tokens = most_drawn(counted)
        cells = send(self.documents.index[where], device)

        def spread(values: Tensor, background: float) -> Tensor:
            full = torch.full(shape, background, dtype=values.dtype, device=device)
            full.view(-1)[cells] = send(values, device)
            return full

        old = send(self.input_ids, device)
        tokens = old.clone()
        tokens.view(-1)[cells] = send(new_tokens, device)
        changed = tokens != old
        labels = None
        if self.labels is not None:
            labels = send(self.labels, device)
            if target != "inputs" and counted is None:
                labels = torch.where(changed & (labels != -100), tokens.to(labels.dtype), labels)
        in_rows = torch.zeros_like(self.input_ids, dtype=torch.bool)
        in_rows.view(-1)[self.documents.index] = scored
        fields: dict[str, Any] = {
            "input_ids": (old if target == "labels" else tokens).to(self.dtype),
            "tokens": tokens.to(self.dtype),
            "labels": labels,
            "attention_mask": self.given_mask,
            "position_ids": self.given_positions,
            "source": None,
        }
        if dropped is not None:
            (is_lost,) = fetch(dropped)
            if is_lost.any():
                gone = torch.zeros_like(scored).index_put_((where,), is_lost)
                fields |= self._without(gone, fields, pad_id)
        return EditResult(
            **fields,
            selected=spread(selected, False),
            changed=changed,
            dropped=torch.zeros_like(changed) if dropped is None else spread(dropped, False),
            scored=send(in_rows, device),
            logprob=None if logprob is None else spread(logprob, math.nan),
            sample_logprob=send(sample_logprob, device),
            draws=None if counted is None else self._all_draws(cells, counted),
        )

    def _all_draws(self, cells: Tensor, counted: Tensor) -> Tensor:
        """(n, K, 2) counts at n cells -> (B, T, K, 2) int32; each other label is its only draw."""
        assert self.labels is not None
        labels = send(self.labels, self.output_device).reshape(-1)
        K = counted.shape[1]
        full = torch.zeros((len(labels), K, 2), dtype=torch.int32, device=labels.device)
        full[:, 0, 0], full[:, 0, 1] = labels, K
        full[cells] = counted.int()
        full[labels == -100] = 0
        return full.view(*self.input_ids.shape, *full.shape[1:])

    def revised(
        self, new_tokens: Tensor, dropped: Tensor, *, pad_id: int, target: Target = "both"
    ) -> EditResult:
        """Replace and remove tokens: `new_tokens` and `dropped` are (M,), on the host."""
        none = torch.zeros_like(dropped)
        return self.result(
            where=torch.arange(len(new_tokens)),
            new_tokens=new_tokens,
            selected=none,
            scored=none,
            dropped=dropped if dropped.any() else None,
            sample_logprob=torch.zeros(0),
            pad_id=pad_id,
            target=target,
        )

    def _without(self, dropped: Tensor, fields: dict[str, Any], pad_id: int) -> dict[str, Any]:
        """The fields of a result without the (M,) `dropped` tokens."""
        if self.mask is not None and not self.mask.all():
            pad_id = int(self.input_ids[self.mask == 0][0])
        shape = self.input_ids.shape
        on_host = remaining_columns(self.documents, dropped, shape, self.pad_to_multiple_of)
        source = send(on_host, self.output_device)

        def taken(values: Tensor | None, padding: int) -> Tensor | None:
            if values is None:
                return None
            return take_columns(send(values, self.output_device), source, padding)

        has_positions = self.given_positions is not None or self.document_ids is not None
        mask = self.given_mask
        if mask is None and not has_positions and (on_host < 0).any():
            # Packed rows keep only position_ids (as in TRL, padding then is documents of one
            # token at position 0): a 2-D mask would hide the borders of documents.
            mask = torch.ones(shape, dtype=torch.int64)
        positions = remaining_positions(self.documents, dropped, shape) if has_positions else None
        return {
            "input_ids": taken(fields["input_ids"], pad_id),
            "tokens": taken(fields["tokens"], pad_id),
            "labels": taken(fields["labels"], -100),
            "attention_mask": taken(mask, 0),
            "position_ids": taken(positions, 0),
            "source": source,
        }


def evenly_spread(mask: Tensor, number: int) -> Tensor:
    """(n,) bool -> (S,) int64: at most `number` places that are True, evenly spread."""
    places = mask.nonzero().squeeze(-1)
    if number < len(places):
        places = places[torch.linspace(0, len(places) - 1, number).long()]
    return places
