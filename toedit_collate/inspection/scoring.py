"""One pass of the prior over a batch, and the edits of any number of policies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..editing.editable import find_editable
from ..head.candidates import Candidates
from ..head.logprob import Scores
from ..head.predictions import Predictions
from ..policy import Context, EditPolicy
from ..prior.base import BasePrior
from ..tokens.checks import check_documents, check_finite
from ..tokens.draws import Draws
from ..tokens.token_batch import TokenBatch
from ..transfer import fetch, send

# With this policy every id of the vocabulary is a candidate, special tokens included.
_ALL = EditPolicy(sampler="full", protect_special=False)


@dataclass(frozen=True)
class Outcome:
    """The edit of the M tokens of a batch by one policy; all tensors are on the CPU.

    Attributes:
        scored: (M,) bool, tokens to which the policy applies.
        selected: (M,) bool, in its region and resampled.
        dropped: (M,) bool, removed by `drop_below`.
        tokens: (M,) int64, after the edit.
        protected: (M,) bool, in the region and in the scope, but a protection left it alone.
    """

    scored: Tensor
    selected: Tensor
    dropped: Tensor
    tokens: Tensor
    protected: Tensor


@dataclass(frozen=True)
class Scored:
    """A batch after one pass of the prior.

    Attributes:
        prior: that scored it.
        batch: M tokens, on the CPU.
        where: (n,) int64, indices of the tokens that have a probability.
        predictions: of the prior at these tokens.
        scores: of these tokens, on the prior's device.
        logprob: (n,) float32 on the CPU, log P of these tokens in nats.
    """

    prior: BasePrior
    batch: TokenBatch
    where: Tensor
    predictions: Predictions
    scores: Scores
    logprob: Tensor

    def outcome(self, policy: EditPolicy, *, epoch: int = 0, generation: int = 0) -> Outcome:
        """The edit of `edit_tokens`, token for token."""
        batch, where = self.batch, self.where
        scored = find_editable(self.prior, policy, batch) & self.prior.scorable(batch)
        in_region, to_drop = policy.selects(self.logprob), policy.drops(self.logprob)
        dropped = to_drop & scored[where]
        selected = in_region & scored[where] & ~dropped
        draws = Draws(policy.seed, epoch if policy.redraw == "epoch" else None, generation)
        drawn = self.predictions.draw(
            policy,
            self.scores,
            send(selected, self.predictions.device),
            batch.uniforms(where, draws),
        )
        tokens = batch.tokens.clone()
        (tokens[where],) = fetch(drawn)
        return Outcome(
            scored=scored,
            selected=self._spread(selected),
            dropped=self._spread(dropped),
            tokens=tokens,
            protected=self._spread((in_region | to_drop) & ~scored[where]) & self.in_scope(policy),
        )

    def in_scope(self, policy: EditPolicy) -> Tensor:
        """(M,) bool, tokens in the policy's scope, protected or not."""
        scope = self.prior.scorable(self.batch)
        if policy.scope == "loss" and self.batch.labels is not None:
            scope = scope & (self.batch.labels.reshape(-1)[self.batch.documents.index] != -100)
        return scope

    def distributions(self, at: Tensor) -> Iterator[Tensor]:
        """Log P of the whole vocabulary at m of the n tokens, some rows at a time.

        Args:
            at: (m,) int64 on the CPU, ascending indices into the n tokens.

        Yields:
            (rows, V) float32, nats; -inf for padding of the vocabulary.
        """
        done = 0
        for found in self.predictions.candidates(_ALL, at):
            rows = at[done : done + len(found.ids)]
            done += len(rows)
            logits = self._by_id(found)
            observed = send(self.batch.tokens[self.where[rows]], logits.device)
            own = logits.gather(-1, observed.unsqueeze(-1))
            # Log P of the observed token is known; the others follow from it.
            known = send(self.logprob[rows], logits.device).unsqueeze(-1)
            level = torch.where(own.isfinite(), known - own, -logits.logsumexp(-1, keepdim=True))
            yield logits + level

    def _by_id(self, found: Candidates) -> Tensor:
        """Logits of candidates, ordered by id: (rows, c) -> (rows, V)."""
        V = self.prior.vocab_size
        every = torch.arange(V, device=found.ids.device)
        if found.ids.shape[-1] == V and bool((found.ids == every).all()):
            return found.logits
        # An aligned prior lists some ids several times, and others never.
        top = found.logits.amax(-1, keepdim=True)
        weights = torch.zeros(len(found.ids), V, device=found.ids.device)
        return weights.scatter_add_(-1, found.ids, (found.logits - top).exp()).log() + top

    def most_probable(self, at: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The most probable tokens at m of the n tokens.

        Args:
            at: (m,) int64 on the CPU, ascending indices into the n tokens.
            count: how many to return.

        Returns:
            (m, count) int64 ids and (m, count) float32 probabilities, on the CPU.
        """
        count = min(count, self.prior.vocab_size)
        ids, chances = [torch.zeros(0, count, dtype=torch.int64)], [torch.zeros(0, count)]
        if len(at):
            for logprob in self.distributions(at):
                top = logprob.topk(count, dim=-1)
                pair = fetch(top.indices, top.values.exp())
                ids.append(pair[0])
                chances.append(pair[1])
        return torch.cat(ids), torch.cat(chances)

    def _spread(self, values: Tensor) -> Tensor:
        full = torch.zeros(len(self.batch.tokens), dtype=torch.bool)
        full[self.where] = values
        return full


@torch.no_grad()
def score_batch(prior: BasePrior, batch: TokenBatch, context: Context = "document") -> Scored:
    """Run the prior over a batch once, with exact log P of every token that has one.

    Args:
        prior: the model.
        batch: on the host.
        context: of the policies (`EditPolicy.context`).

    Raises:
        ValueError: as `TokenBatch.in_context`; or a token is not in the vocabulary, a document is
            longer than the prior's positions, or the prior returned NaN.
    """
    batch = batch.in_context(context, getattr(prior.tokenizer, "eos_token_id", None))
    check_documents(
        batch.contexts, batch.tokens, vocab_size=prior.vocab_size, max_length=prior.max_length
    )
    return prior.run_gathered(lambda: _score(prior, batch))


def _score(prior: BasePrior, batch: TokenBatch) -> Scored:
    where = prior.scorable(batch).nonzero().squeeze(-1)
    predictions = prior.predict(batch, where)
    scores = predictions.score(_ALL, exact=True)
    check_finite(scores.is_finite)
    (logprob,) = fetch(scores.logprob)
    return Scored(prior, batch, where, predictions, scores, logprob.float())
