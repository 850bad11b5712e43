"""One pass of the prior over a batch, and what any number of policies make of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..editing.editable import find_editable
from ..head.candidates import Candidates
from ..head.logprob import Scores
from ..policy import EditPolicy
from ..prior.base import BasePrior, Predictions
from ..tokens.checks import check_documents, check_finite
from ..tokens.draws import Draws
from ..tokens.token_batch import TokenBatch
from ..transfer import fetch, send

# Every token of the vocabulary is a candidate of this one, the special ones, too.
_ALL = EditPolicy(sampler="full", protect_special=False)


@dataclass(frozen=True)
class Outcome:
    """What a policy makes of the M tokens of a batch; all on the host.

    Attributes:
        scored: (M,) bool, tokens to which the policy is applied.
        selected: (M,) bool, in its region, so resampled.
        dropped: (M,) bool, removed by `drop_below`.
        tokens: (M,) int64, after the edit.
        spared: (M,) bool, in the region and with a label, but protected.
    """

    scored: Tensor
    selected: Tensor
    dropped: Tensor
    tokens: Tensor
    spared: Tensor


@dataclass(frozen=True)
class Scored:
    """A batch that the prior has passed through once.

    Attributes:
        prior: that did.
        batch: M tokens, on the host.
        where: (n,) int64, which of them have a probability.
        predictions: of the prior at those.
        scores: of those, on the prior's device.
        logprob: (n,) float32 on the host, log P of those in nats.
    """

    prior: BasePrior
    batch: TokenBatch
    where: Tensor
    predictions: Predictions
    scores: Scores
    logprob: Tensor

    def outcome(self, policy: EditPolicy, *, epoch: int = 0, generation: int = 0) -> Outcome:
        """The edit that `edit_tokens` makes of this batch, token for token."""
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
            spared=self._spread((in_region | to_drop) & ~scored[where]) & self.labelled(policy),
        )

    def labelled(self, policy: EditPolicy) -> Tensor:
        """Which tokens are in a policy's scope, protected or not: (M,) bool."""
        scope = self.prior.scorable(self.batch)
        if policy.scope == "loss" and self.batch.labels is not None:
            scope = scope & (self.batch.labels.reshape(-1)[self.batch.documents.index] != -100)
        return scope

    def distributions(self, at: Tensor) -> Iterator[Tensor]:
        """Log P of the whole vocabulary at m of the n places, a few at a time.

        Args:
            at: (m,) int64, on the host: which of the n, ascending.

        Yields:
            For the next rows of them, (rows, V) float32, nats, by the softmax over all ids; -inf
            for padding of the vocabulary.
        """
        done = 0
        for found in self.predictions.candidates(_ALL, at):
            rows = at[done : done + len(found.ids)]
            done += len(rows)
            logits = self._by_id(found)
            observed = send(self.batch.tokens[self.where[rows]], logits.device)
            own = logits.gather(-1, observed.unsqueeze(-1))
            # The observed token's log P is known: that of the others follows by the difference.
            known = send(self.logprob[rows], logits.device).unsqueeze(-1)
            level = torch.where(own.isfinite(), known - own, -logits.logsumexp(-1, keepdim=True))
            yield logits + level

    def _by_id(self, found: Candidates) -> Tensor:
        """Logits of candidates in the order of the ids: (rows, c) -> (rows, V)."""
        V = self.prior.vocab_size
        every = torch.arange(V, device=found.ids.device)
        if found.ids.shape[-1] == V and bool((found.ids == every).all()):
            return found.logits
        # A prior with another tokenizer lists what it can say, some ids in several ways.
        top = found.logits.amax(-1, keepdim=True)
        weights = torch.zeros(len(found.ids), V, device=found.ids.device)
        return weights.scatter_add_(-1, found.ids, (found.logits - top).exp()).log() + top

    def runners_up(self, at: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The most probable tokens at m of the n places, the observed one perhaps among them.

        Args:
            at: (m,) int64, on the host: which of the n, ascending.
            count: how many.

        Returns:
            (m, count) int64 ids and (m, count) float32 probabilities, on the host.
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
def score_batch(prior: BasePrior, batch: TokenBatch) -> Scored:
    """Pass a batch through the prior once, with exact log P wherever there is one.

    Raises:
        ValueError: a token is not in the vocabulary, a document is longer than the prior's
            positions, or the prior returned NaN.
    """
    check_documents(
        batch.documents, batch.tokens, vocab_size=prior.vocab_size, max_length=prior.max_length
    )
    return prior.run_gathered(lambda: _score(prior, batch))


def _score(prior: BasePrior, batch: TokenBatch) -> Scored:
    where = prior.scorable(batch).nonzero().squeeze(-1)
    predictions = prior.predict(batch, where)
    scores = predictions.score(_ALL, exact=True)
    check_finite(scores.is_finite)
    (logprob,) = fetch(scores.logprob)
    return Scored(prior, batch, where, predictions, scores, logprob.float())
