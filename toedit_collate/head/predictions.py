"""What a model with the trainee's own ids predicts: one hidden state for each token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..policy import EditPolicy
from ..transfer import fetch, on_host, send
from .candidates import Candidates, draw_tokens, find_candidates, surely_kept
from .logprob import Competitors, Scores, exact_logprob, score_observed
from .projection import Head, row_tiles, tile_elements

T = TypeVar("T")


@dataclass(frozen=True)
class HeadPredictions:
    """`Predictions` by a vocabulary projection.

    Attributes:
        head: V ids; looked up once for the batch.
        states: (n, D), the hidden states that predict the tokens.
        tokens: (n,) int64, the observed tokens, on the device of the states.
        competitors: measures on states, or remembers, the ids that the head should visit first.
        forbidden: (V,) bool, the ids that must not be drawn, special ones among them or not.
        with_kernel: whether the GPU kernel computes log P.
    """

    head: Head
    states: Tensor
    tokens: Tensor
    competitors: Callable[[Head, Tensor], Competitors | None]
    forbidden: Callable[[bool], Tensor]
    with_kernel: bool = False

    @property
    def device(self) -> torch.device:
        """Where scores and draws are computed."""
        return self.states.device

    @property
    def _budget(self) -> int:
        """Number of logits to hold at once."""
        return tile_elements(len(self.tokens), self.head.vocab_size, self.device)

    def _in_tiles(self, compute: Callable[[int], T]) -> T:
        """Compute with so many logits at once; with fewer, where the GPU's memory does not suffice.

        Raises:
            torch.OutOfMemoryError: the logits of one token are too many.
        """
        budget = self._budget
        while True:
            try:
                return compute(budget)
            except torch.cuda.OutOfMemoryError as error:
                if budget <= self.head.vocab_size:
                    raise torch.cuda.OutOfMemoryError(
                        f"the prior's vocabulary projection ran out of GPU memory with "
                        f"{self.head.vocab_size} logits at once; lower the batch size, load the "
                        f"prior with quantization='8bit', or use a decision cache ({error})"
                    ) from error
                budget = max(self.head.vocab_size, budget // 4)
            torch.cuda.empty_cache()

    def score(self, policy: EditPolicy, *, exact: bool = False) -> Scores:
        """Log P of the observed tokens; see `Predictions`."""
        competitors = None if exact else self.competitors(self.head, self.states)
        return self._in_tiles(
            lambda budget: score_observed(
                self.head,
                self.states,
                self.tokens,
                lowest_cut=policy.lowest_cut,
                competitors=competitors,
                with_kernel=self.with_kernel,
                budget=budget,
            )
        )

    def exact_logprob(self, at: Tensor) -> Tensor:
        """Log P of some observed tokens; no wait for the device."""
        there = send(at, self.device)
        return self._in_tiles(
            lambda budget: exact_logprob(
                self.head, self.states[there], self.tokens[there], budget=budget
            )
        )

    def draw(
        self, policy: EditPolicy, scores: Scores, selected: Tensor, uniforms: Tensor
    ) -> Tensor:
        """Resample the selected tokens; see `Predictions`."""
        at = places_to_draw(policy, scores, selected, uniforms, num_ids=self.head.vocab_size)
        at = send(at, self.device)
        drawn = self._in_tiles(
            lambda budget: draw_tokens(
                self.head,
                self.states[at],
                self.tokens[at],
                send(uniforms, self.device)[at],
                policy,
                self.forbidden(policy.protect_special),
                budget,
            )
        )
        new_tokens = self.tokens.clone()
        new_tokens[at] = torch.where(selected[at], drawn, self.tokens[at])
        return new_tokens

    def candidates(self, policy: EditPolicy, at: Tensor) -> Iterator[Candidates]:
        """Among what the tokens at some places are resampled; see `Predictions`."""
        there = send(at, self.device)
        forbidden = self.forbidden(policy.protect_special)
        for states, tokens in row_tiles(
            self.head, self._budget, self.states[there], self.tokens[there]
        ):
            yield find_candidates(self.head, states, tokens, policy, forbidden)


def places_to_draw(
    policy: EditPolicy,
    scores: Scores,
    selected: Tensor,
    uniforms: Tensor,
    *,
    num_ids: int,
    num_draws: Tensor | None = None,
) -> Tensor:
    """Which of n tokens may change, so need candidates: (m,) int64, on the host.

    Args:
        policy: says what a draw is.
        scores: of the tokens.
        selected: (n,) bool, on the device of the scores.
        uniforms: (n,) float64, on the host.
        num_ids: the most outcomes that a draw can have.
        num_draws: (n,) int64, how many draws one behind another give each token; None: one.
    """
    if policy.region != "above":
        # There, most selected tokens are known by a bound of P alone.
        return fetch(selected)[0].nonzero().squeeze(-1)
    host = on_host(selected)
    # To ask a device for P would be a wait; the threshold, which a selected token reaches, does
    # nearly.
    bound: Tensor | float = scores.logprob if host else math.log(policy.threshold)
    most = policy.top_k if policy.sampler == "top_k" else num_ids
    kept = surely_kept(uniforms, bound, policy, num_candidates=most, num_draws=num_draws)
    return ((selected if host else scores.is_open) & ~kept).nonzero().squeeze(-1)
