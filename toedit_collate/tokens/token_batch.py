"""A batch on the host: as tensors of B rows, and as the documents in it."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..policy import Target
from ..transfer import fetch, send
from .checks import check_labels, check_mask, check_shapes
from .documents import Documents, find_documents, mask_of_pairs
from .draws import Draws, Words, sum_words, token_uniforms, token_words
from .removal import positions_left, shrink_rows
from .result import EditResult


@dataclass(frozen=True)
class TokenBatch:
    """A batch on the host, as documents and as the tensors that came.

    What only the tokens decide is worked out here, while the device is busy with other things.

    Attributes:
        input_ids: (B, T) int64.
        mask: (B, T), 0 at padding, 1 or the number of the document elsewhere; or None.
        labels: (B, T), or None.
        documents: of the batch; M tokens.
        tokens: (M,) int64, theirs.
        given_ids: `input_ids` as they came; so labels, mask and positions.
        home: the device where results are wanted.
    """

    input_ids: Tensor
    mask: Tensor | None
    labels: Tensor | None
    documents: Documents
    tokens: Tensor
    given_ids: Tensor
    given_labels: Tensor | None
    given_mask: Tensor | None
    given_positions: Tensor | None
    home: torch.device

    @classmethod
    def of(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        labels: Tensor | None,
        home: torch.device | None = None,
    ) -> TokenBatch:
        """Check a batch, bring it to the host, and find its documents.

        Args:
            input_ids: (B, T) int64, on any device.
            attention_mask: (B, T), 0 at padding, and elsewhere 1 or the number of the document; or
                (B, 1, T, T), which pairs of tokens see each other; None: there is no padding.
            position_ids: (B, T) int64, restarting at 0 at each document; None: a document is a row.
            labels: (B, T) int64, each -100 or the token at its place; None: there are none.
            home: where results are wanted; None: where `input_ids` are.

        Raises:
            TypeError: a tensor is of the wrong type.
            ValueError: shapes differ; a label is neither -100 nor the token; padding stands inside
                a document.

        Example:
            >>> ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
            >>> batch = TokenBatch.of(ids, torch.tensor([[1, 1, 1], [1, 1, 0]]), None, None)
            >>> batch.tokens, batch.documents.lengths
            (tensor([5, 6, 7, 8, 9]), [3, 2])
        """
        check_shapes(input_ids, attention_mask, position_ids, labels)
        mask_2d = attention_mask
        if attention_mask is not None and attention_mask.dim() == 4:
            mask_2d = mask_of_pairs(attention_mask, len(input_ids))
        given = [input_ids, mask_2d, position_ids, labels]
        fetched = iter(fetch(*(tensor for tensor in given if tensor is not None)))
        ids, mask, positions, row_labels = (
            None if tensor is None else next(fetched) for tensor in given
        )
        assert ids is not None
        check_mask(mask)
        check_labels(ids, row_labels, mask)
        ids = ids.to(torch.int64)
        documents = find_documents(ids, mask, positions)
        return cls(
            input_ids=ids,
            mask=mask,
            labels=row_labels,
            documents=documents,
            tokens=ids.reshape(-1)[documents.index],
            given_ids=input_ids,
            given_labels=labels,
            given_mask=attention_mask,
            given_positions=position_ids,
            home=input_ids.device if home is None else home,
        )

    def uniforms(self, where: Tensor, draws: Draws, num_draws: int = 1) -> Tensor:
        """Numbers in [0, 1) for n of the M tokens: (n,) float64, or (n, num_draws) for several."""
        chosen, documents = where.numpy(), self.documents
        document = documents.document.numpy()[chosen]
        position = documents.position.numpy()[chosen]
        return torch.from_numpy(token_uniforms(self._keys(), document, position, draws, num_draws))

    @property
    def keys(self) -> Tensor:
        """(N,) int64, a key of each document's content."""
        return torch.from_numpy(self._keys().view(np.int64))

    def _keys(self) -> Words:
        return self._summed(self._words[0])

    def _summed(self, words: Words) -> Words:
        return sum_words(words, self.documents.document.numpy(), self.documents.num_documents)

    @functools.cached_property
    def _words(self) -> tuple[Words, Words]:
        return token_words(self.tokens.numpy(), self.documents.position.numpy())

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
        """Bring values of n of the M tokens back into the (B, T) batch, at home.

        Args:
            where: (n,) int64 on the host, which of the M tokens.
            new_tokens: (n,) int64, on any device, like all that follow.
            selected: (n,) bool.
            scored: (M,) bool, on the host.
            dropped: (n,) bool; None: no token is removed.
            logprob: (n,) float32, or None.
            sample_logprob: (S,) float32.
            pad_id: for rows that shrink.
            target: what carries the new tokens (`EditPolicy.target`).
        """
        if dropped is not None and self.given_mask is not None and self.given_mask.dim() == 4:
            raise ValueError(
                "drop_below removes tokens, and attention_mask has four dimensions, which can't "
                "follow; tell documents by position_ids, or by numbers in a (B, T) mask"
            )
        cells = send(self.documents.index[where], self.home)

        def spread(values: Tensor, background: float) -> Tensor:
            shape = self.input_ids.shape
            full = torch.full(shape, background, dtype=values.dtype, device=self.home)
            full.view(-1)[cells] = send(values, self.home)
            return full

        old = self._at_home(self.given_ids, self.input_ids)
        tokens = old.to(torch.int64, copy=True)
        tokens.view(-1)[cells] = send(new_tokens, self.home)
        changed = tokens != old
        labels = None
        if self.given_labels is not None and self.labels is not None:
            labels = self._at_home(self.given_labels, self.labels)
            if target != "inputs":
                labels = torch.where(changed & (labels != -100), tokens.to(labels.dtype), labels)
        tokens = tokens.to(old.dtype)
        every = torch.zeros_like(self.input_ids, dtype=torch.bool)
        every.view(-1)[self.documents.index] = scored
        result = EditResult(
            input_ids=old if target == "labels" else tokens,
            labels=labels,
            attention_mask=self.given_mask,
            position_ids=self.given_positions,
            selected=spread(selected, False),
            changed=changed,
            dropped=torch.zeros_like(changed) if dropped is None else spread(dropped, False),
            scored=send(every, self.home),
            tokens=tokens,
            source=None,
            logprob=None if logprob is None else spread(logprob, math.nan),
            sample_logprob=send(sample_logprob, self.home),
        )
        if dropped is not None:
            new_tokens, dropped = fetch(new_tokens, dropped)
            if dropped.any():
                gone = torch.zeros_like(scored).index_put_((where,), dropped)
                all_tokens = self.tokens.index_put((where,), new_tokens)
                shrunk = self._shrunk(gone, all_tokens, pad_id)
                result = dataclasses.replace(result, **shrunk)
        return result

    def _at_home(self, given: Tensor, on_host: Tensor) -> Tensor:
        return given if given.device == self.home else send(on_host, self.home)

    def revised(
        self, new_tokens: Tensor, dropped: Tensor, *, pad_id: int, target: Target = "both"
    ) -> EditResult:
        """The batch with other tokens, and without some: both (M,), on the host."""
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

    def _shrunk(self, dropped: Tensor, new_tokens: Tensor, pad_id: int) -> dict[str, Tensor]:
        """What changes in a result where rows lose tokens; (M,) `dropped` and `new_tokens`."""
        if self.mask is not None and not self.mask.all():
            pad_id = int(self.input_ids[self.mask == 0][0])
        index = self.documents.index
        input_ids, positions = self.input_ids.clone(), torch.zeros_like(self.input_ids)
        input_ids.view(-1)[index] = new_tokens
        positions.view(-1)[index] = positions_left(self.documents, dropped)
        T = input_ids.shape[1]
        columns = {
            "input_ids": (input_ids, pad_id),
            "position_ids": (positions, 0),
            "source": (torch.arange(T).expand(input_ids.shape), -1),
        }
        if self.labels is not None:
            changed = (input_ids != self.input_ids) & (self.labels != -100)
            new_labels = torch.where(changed, input_ids.to(self.labels.dtype), self.labels)
            columns["labels"] = (new_labels, -100)
        if self.mask is not None:
            columns["attention_mask"] = (self.mask, 0)
        kept, real = shrink_rows(self.documents, dropped, columns, T)
        kept["input_ids"] = kept["tokens"] = kept["input_ids"].to(self.given_ids.dtype)
        if self.mask is None and self.given_positions is None and not real.all():
            # Packed rows keep to position_ids (padding then is a document of one token at
            # position 0, as TRL has it): a 2-D mask beside them would hide their borders.
            kept["attention_mask"] = real.to(torch.int64)
        if self.given_positions is None:
            del kept["position_ids"]
        return {name: send(tensor, self.home) for name, tensor in kept.items()}
