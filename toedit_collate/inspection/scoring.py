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
from .findings import Edit
from .kinds import Bool

# With this policy every id of the vocabulary is a candidate, special tokens included.
_ALL = EditPolicy(sampler="full", protect_special=False)


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

    def edit(self, policy: EditPolicy) -> Edit:
        """The edit of all M tokens: that of `edit_tokens` in the first epoch."""
        batch, where = self.batch, self.where
        scored = find_editable(self.prior, policy, batch) & self.prior.scorable(batch)
        in_region, to_drop = policy.selects(self.logprob), policy.drops(self.logprob)
        dropped = to_drop & scored[where]
        selected = in_region & scored[where] & ~dropped
        protected = (in_region | to_drop) & ~scored[where] & self.in_scope(policy)[where]
        draws = Draws(policy.seed, 0 if policy.redraw == "epoch" else None, generation=0)
        uniforms = batch.uniforms(where, draws)
        device = self.predictions.device
        drawn = self.predictions.draw(policy, self.scores, send(selected, device), uniforms)
        after = batch.tokens.clone()
        after[where] = fetch(drawn)[0].masked_fill(dropped, -1)

        def spread(values: Tensor) -> Bool:
            return torch.zeros(len(after), dtype=torch.bool).index_put_((where,), values).numpy()

        return Edit(
            scored=scored.numpy(),
            selected=spread(selected),
            protected=spread(protected),
            before=batch.tokens.numpy(),
            after=after.numpy(),
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

    def most_probable(self, at: Tensor, count: int) -> list[list[tuple[int, float]]]:
        """The most probable tokens, each with its probability, at m of the n tokens.

        `at` is as for `distributions`.
        """
        found = []
        for logprob in self.distributions(at):
            top = logprob.topk(min(count, logprob.shape[-1]), dim=-1)
            rows = (x.tolist() for x in fetch(top.indices, top.values.exp()))
            found += [list(zip(*row, strict=True)) for row in zip(*rows, strict=True)]
        return found


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

    def score() -> Scored:
        where = prior.scorable(batch).nonzero().squeeze(-1)
        predictions = prior.predict(batch, where)
        scores = predictions.score(_ALL, exact=True)
        check_finite(scores.is_finite)
        (logprob,) = fetch(scores.logprob)
        return Scored(prior, batch, where, predictions, scores, logprob.float())

    return prior.run_gathered(score)
