"""edit_tokens(): the method on one batch of tensors (arXiv:2412.14689, Algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .head import observed_logprob
from .layout import Documents, find_documents
from .policy import EditPolicy
from .prior import Prior
from .protection import structure_mask
from .resample import draw_tokens, surely_kept
from .shrink import positions_left, shrink_rows
from .uniforms import document_keys, token_uniforms
from .validation import check_documents, check_finite, check_labels, check_shapes


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


@torch.no_grad()
def edit_tokens(
    prior: Prior,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    labels: Tensor | None = None,
    policy: EditPolicy | None = None,
    epoch: int = 0,
    generation: int = 0,
    return_logprob: bool = False,
    num_sampled: int = 0,
) -> EditResult:
    """Resample the tokens that the prior finds too easy: Algorithm 1 and Eq. 2.

    Args:
        prior: scores the original tokens, in one forward pass of its trunk.
        input_ids: (B, T) int64, on any device.
        attention_mask: (B, T), 1 at tokens and 0 at padding, on either side.
        position_ids: (B, T) int64, restarting at 0 at each document of a packed row. Without
            them, a row is one document.
        labels: (B, T) int64, equal to `input_ids` or -100 ("no loss").
        policy: which tokens, and how; default: the paper's.
        epoch: number of the epoch, for `redraw="epoch"`.
        generation: number of the generation.
        return_logprob: also compute log P exactly wherever there is one. The edit is the same.
        num_sampled: compute log P exactly for that many scored tokens, evenly spread.

    Raises:
        TypeError: a tensor is of the wrong type.
        ValueError: shapes differ; an id is not in the vocabulary; a document is longer than the
            prior's positions; a label is neither -100 nor the token; the prior returned NaN.

    Example:
        >>> result = edit_tokens(prior, input_ids)  # doctest: +SKIP
        >>> print(result.selected.sum(), result.changed.sum())  # doctest: +SKIP
    """
    policy = EditPolicy() if policy is None else policy
    check_shapes(input_ids, attention_mask, position_ids, labels)
    check_labels(input_ids, labels, attention_mask)
    batch = _Batch.on(prior.device, input_ids, attention_mask, position_ids, labels)
    documents, tokens = batch.documents, batch.tokens
    check_documents(documents, tokens, vocab_size=prior.vocab_size, max_length=prior.max_length)
    editable = _find_editable(prior, policy, batch)
    wanted = documents.position > 0 if return_logprob else editable
    states, logprob, sample = _score(
        prior, policy, batch, wanted, editable, exact=return_logprob, num_sampled=num_sampled
    )

    # x'_i = x_i where P(x_i | x_<i) < p; x'_i ~ P(. | x_<i) where it is >= p (Eq. 2).
    dropped = editable & policy.drops(logprob)
    selected = editable & policy.selects(logprob) & ~dropped
    uniforms = token_uniforms(
        batch.keys[documents.document[selected]],
        documents.position[selected],
        seed=policy.seed,
        epoch=epoch if policy.redraw == "epoch" else None,
        generation=generation,
    )
    new_tokens = tokens.clone()
    new_tokens[selected] = _resample(
        prior, policy, states[selected[wanted]], tokens[selected], logprob[selected], uniforms
    )
    return batch.result(
        new_tokens=new_tokens,
        selected=selected,
        dropped=dropped,
        scored=editable,
        logprob=logprob if return_logprob else None,
        sample_logprob=sample,
        pad_id=prior.pad_id,
    )


def _find_editable(prior: Prior, policy: EditPolicy, batch: _Batch) -> Tensor:
    """Which tokens may be edited: (M,) bool."""
    # The first token of a document has no context that could score it.
    editable = batch.documents.position > 0
    if not policy.decides:
        return torch.zeros_like(editable)
    if policy.scope == "loss" and batch.labels is not None:
        editable &= batch.labels.reshape(-1)[batch.documents.index] != -100
    special = set(prior.special_ids) if policy.protect_special else set()
    runs = prior.template_sequences if policy.protect_special else []
    ids = torch.tensor(sorted(special | set(policy.protected_token_ids)), dtype=torch.int64)
    protected = structure_mask(batch.input_ids, ids.to(batch.input_ids.device), runs)
    if policy.protect is not None:
        protected = protected | _user_mask(policy, batch.input_ids, prior.tokenizer)
    return editable & ~protected.reshape(-1)[batch.documents.index]


def _user_mask(policy: EditPolicy, input_ids: Tensor, tokenizer: object) -> Tensor:
    assert policy.protect is not None
    mask = policy.protect(input_ids, tokenizer)
    if not isinstance(mask, Tensor) or mask.shape != input_ids.shape or mask.dtype != torch.bool:
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
        raise ValueError(
            f"protect must return a bool tensor of the shape of input_ids, "
            f"{tuple(input_ids.shape)}, got {got}"
        )
    return mask.to(input_ids.device)


def _score(
    prior: Prior,
    policy: EditPolicy,
    batch: _Batch,
    wanted: Tensor,
    editable: Tensor,
    *,
    exact: bool,
    num_sampled: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Score the tokens that are `wanted`.

    Returns:
        states: a row (D,) for each wanted token.
        logprob: (M,) float32, NaN where not wanted; under `policy.lowest_cut` only a bound, unless
            `exact`.
        sample: (S,) float32, exact log P of S <= `num_sampled` editable tokens.
    """
    tokens = batch.tokens
    logprob = torch.full(tokens.shape, math.nan, device=tokens.device)
    if not wanted.any():
        return logprob.new_zeros(0, 1), logprob, logprob[:0]
    states = prior.predictive_states(batch.documents, tokens, wanted)
    head = prior.head
    cut = -math.inf if exact else policy.lowest_cut
    scores = observed_logprob(head, states, tokens[wanted], lowest_cut=cut)
    check_finite(scores, states)
    logprob[wanted] = scores
    sampled = editable[wanted].nonzero().squeeze(-1)
    if num_sampled < len(sampled):
        places = torch.linspace(0, len(sampled) - 1, num_sampled, device=sampled.device)
        sampled = sampled[places.long()]
    sample = observed_logprob(head, states[sampled], tokens[wanted][sampled])
    return states, logprob, sample


def _resample(
    prior: Prior,
    policy: EditPolicy,
    states: Tensor,
    tokens: Tensor,
    logprob: Tensor,
    uniforms: Tensor,
) -> Tensor:
    """Draw replacements for the n selected tokens: (n,) int64."""
    drawn = tokens.clone()
    head = prior.head
    is_open = torch.ones_like(tokens, dtype=torch.bool)
    if policy.region == "above":  # there, log P of a selected token is exact
        most = policy.top_k if policy.sampler == "top_k" else head.vocab_size
        is_open = ~surely_kept(uniforms, logprob, policy, num_candidates=most)
    drawn[is_open] = draw_tokens(
        head,
        states[is_open],
        tokens[is_open],
        uniforms[is_open],
        policy,
        prior.forbidden_ids(forbid_special=policy.protect_special),
    )
    return drawn


@dataclass(frozen=True)
class _Batch:
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
    ) -> _Batch:
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
