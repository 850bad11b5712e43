"""Predictions of a prior that has the trainee's tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import starmap

import torch
from torch import Tensor

from ..policy import EditPolicy
from ..transfer import fetch, on_host, send
from .candidates import Candidates, draw_tokens, find_candidates, in_columns, surely_kept
from .logprob import Competitors, Scores, exact_logprob, score_observed
from .projection import Head, project_rows

FEW_DRAWS = 128  # drawing for so many tokens in vain costs a GPU less than another wait


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a prior predicts at n tokens of one batch. The device may still be computing it.

    Here each token has one hidden state that predicts it; see also `AlignedPredictions`.
    """

    head: Head  # of the prior; V ids
    states: Tensor  # (n, D), the hidden states that predict the tokens
    tokens: Tensor  # (n,) int64, the observed tokens, on the device of the states
    # the ids that the head should sum first, measured on states or known
    competitors: Callable[[Head, Tensor], Competitors | None]
    # (m,) int64, the ids that must not be drawn, with special ones or without
    forbidden: Callable[[bool], Tensor]
    with_kernel: bool = False  # whether the GPU kernel computes log P

    @property
    def device(self) -> torch.device:
        """Where scores and draws are computed."""
        return self.states.device

    def score(self, policy: EditPolicy, *, exact: bool = False) -> Scores:
        """Log P of the n observed tokens. The host waits for the device once, here.

        Below the lowest cut of the policy, log P may be an upper bound, unless `exact`.
        """
        competitors = None if exact else self.competitors(self.head, self.states)
        return score_observed(
            self.head,
            self.states,
            self.tokens,
            lowest_cut=policy.lowest_cut,
            competitors=competitors,
            with_kernel=self.with_kernel,
        )

    def exact_logprob(self, at: Tensor) -> Tensor:
        """Log P of some tokens, without a wait: (S,) int64 on the host -> (S,) float32, nats."""
        there = send(at, self.device)
        return exact_logprob(self.head, self.states[there], self.tokens[there])

    def draw(
        self, policy: EditPolicy, scores: Scores, selected: Tensor, uniforms: Tensor
    ) -> Tensor:
        """Resample the selected tokens; one uniform decides each draw.

        Args:
            policy: sampler, temperature, `exclude_original`, `protect_special`.
            scores: the result of `score`.
            selected: (n,) bool on `device`.
            uniforms: (n,) float64 in [0, 1), on the host; or (n, d) for d draws of each token.

        Returns:
            int64 on `device`, the shape of `uniforms`: the tokens, resampled where selected.
        """
        at = self._places_to_draw(policy, scores, selected, uniforms)
        new_tokens = repeated(self.tokens, uniforms)
        if len(at):
            there = send(at, self.device)
            drawn = self._draw(policy, at, self.tokens[there], send(uniforms[at], self.device))
            is_new = repeated(selected[there], drawn)
            new_tokens[there] = torch.where(is_new, drawn, new_tokens[there])
        return new_tokens

    def candidates(self, policy: EditPolicy, at: Tensor) -> Iterator[Candidates]:
        """Yield the candidates of some tokens, a few at a time.

        `at` is (m,) int64 on the host, ascending.
        """
        if len(at) == 0:
            return
        forbidden = self._forbidden(policy)
        tokens = self.tokens[send(at, self.device)]
        for logits, observed in self._tiles(at, tokens, many=policy.sampler == "top_k"):
            yield find_candidates(policy, forbidden, logits, observed)

    # What `AlignedPredictions` changes.

    @property
    def _num_outcomes(self) -> int:
        """The most outcomes that a draw can have."""
        return self.head.vocab_size

    @property
    def _chain_length(self) -> Tensor | None:
        """(n,) int64, as for `surely_kept`."""
        return None

    def _forbidden(self, policy: EditPolicy) -> Tensor:
        """The columns of `_tiles` that must not be drawn: (m,) int64 on `device`."""
        return self.forbidden(policy.protect_special)

    def _tiles(
        self, at: Tensor, *columns: Tensor, many: bool = False
    ) -> Iterator[tuple[Tensor, ...]]:
        """Logits at some tokens, with the rows of the columns; see `project_rows`."""
        yield from project_rows(self.head, self.states[send(at, self.device)], *columns, many=many)

    def _draw(self, policy: EditPolicy, at: Tensor, observed: Tensor, uniforms: Tensor) -> Tensor:
        draw = partial(draw_tokens, policy, self._forbidden(policy))
        tiles = self._tiles(at, observed, uniforms, many=policy.sampler != "top_p")
        # starmap keeps no tile, whose block could not be freed before the next is made.
        return torch.cat(list(starmap(draw, tiles)))

    def _places_to_draw(
        self, policy: EditPolicy, scores: Scores, selected: Tensor, uniforms: Tensor
    ) -> Tensor:
        """Which of n tokens may change, so that they need candidates: (m,) int64 on the host."""
        if policy.region != "above":
            # `surely_kept` needs P > 1/2, which few of these tokens have.
            return fetch(selected)[0].nonzero().squeeze(-1)
        length = self._chain_length

        def may_change(among: Tensor, logprob: Tensor | float) -> Tensor:
            kept = surely_kept(
                in_columns(uniforms),
                torch.as_tensor(logprob, dtype=torch.float64).unsqueeze(-1),
                policy,
                num_candidates=policy.top_k if policy.sampler == "top_k" else self._num_outcomes,
                chain_length=None if length is None else length.unsqueeze(-1),
            )
            return (among & ~kept.all(-1)).nonzero().squeeze(-1)

        if not on_host(selected):
            # Reading P from a GPU is a wait. The threshold is a lower bound of it.
            at = may_change(scores.is_open, math.log(policy.threshold))
            if len(at) <= FEW_DRAWS:
                return at
        logprob, is_selected = fetch(scores.logprob, selected)
        return may_change(is_selected, logprob)


def repeated(values: Tensor, like: Tensor) -> Tensor:
    """Copy (n,) values for each draw of a token: the shape of `like`."""
    return values.view(len(values), *[1] * (like.dim() - 1)).expand(like.shape).clone()
