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
from .candidates import Candidates, draw_tokens, find_candidates, in_columns, surely_kept
from .logprob import Competitors, Scores, exact_logprob, score_observed
from .projection import Head, block_elements, project_rows, tile_elements

T = TypeVar("T")

# Drawing for so many tokens too many costs a GPU less than one more wait of the host.
FEW_DRAWS = 128


@dataclass(frozen=True)
class HeadPredictions:
    """`Predictions` by a vocabulary projection.

    Attributes:
        head: V ids; looked up once for the batch.
        states: (n, D), the hidden states that predict the tokens.
        tokens: (n,) int64, the observed tokens, on the device of the states.
        competitors: measures on states, or remembers, the ids that the head should visit first.
        forbidden: (m,) int64, the ids that must not be drawn, special ones among them or not.
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

    def _in_tiles(self, compute: Callable[[int], T], budget: int | None = None) -> T:
        """Compute with so many logits at once; with fewer, where the GPU's memory does not suffice.

        Raises:
            torch.OutOfMemoryError: the logits of one token are too many.
        """
        budget = budget or tile_elements(len(self.tokens), self.head.vocab_size, self.device)
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
        new_tokens = repeated(self.tokens, uniforms)
        if len(at) == 0:
            return new_tokens
        there = send(at, self.device)
        columns = self.tokens[there], send(uniforms[at], self.device)
        forbidden = self.forbidden(policy.protect_special)

        def draw(most: int) -> Tensor:
            tiles = project_rows(self.head, self.states[there], *columns, most=most)
            return torch.cat([draw_tokens(policy, forbidden, *tile) for tile in tiles])

        drawn = self._in_tiles(draw, block_elements(self.head, self.states))
        new_tokens[there] = torch.where(repeated(selected[there], drawn), drawn, new_tokens[there])
        return new_tokens

    def candidates(self, policy: EditPolicy, at: Tensor) -> Iterator[Candidates]:
        """Among what the tokens at some places are resampled; see `Predictions`."""
        if len(at) == 0:
            return
        there = send(at, self.device)
        forbidden = self.forbidden(policy.protect_special)
        for logits, tokens in project_rows(self.head, self.states[there], self.tokens[there]):
            yield find_candidates(policy, forbidden, logits, tokens)


def repeated(values: Tensor, like: Tensor) -> Tensor:
    """The values of n tokens, (n,), once for each of their draws: a copy, the shape of `like`."""
    return values.view(len(values), *[1] * (like.dim() - 1)).expand(like.shape).clone()


def places_to_draw(
    policy: EditPolicy,
    scores: Scores,
    selected: Tensor,
    uniforms: Tensor,
    *,
    num_ids: int,
    chain_length: Tensor | None = None,
) -> Tensor:
    """Which of n tokens may change, so need candidates: (m,) int64, on the host.

    Args:
        policy: says what a draw is.
        scores: of the tokens.
        selected: (n,) bool, on the device of the scores.
        uniforms: (n,) or (n, d) float64, on the host.
        num_ids: the most outcomes that a draw can have.
        chain_length: (n,) int64, how many draws one behind another give each token; None: one.
    """
    if policy.region != "above":
        # There, most selected tokens are known by a bound of P alone.
        return fetch(selected)[0].nonzero().squeeze(-1)
    most = policy.top_k if policy.sampler == "top_k" else num_ids

    def may_change(among: Tensor, logprob: Tensor | float) -> Tensor:
        kept = surely_kept(
            in_columns(uniforms),
            torch.as_tensor(logprob, dtype=torch.float64).unsqueeze(-1),
            policy,
            num_candidates=most,
            chain_length=None if chain_length is None else chain_length.unsqueeze(-1),
        )
        return (among & ~kept.all(-1)).nonzero().squeeze(-1)

    if not on_host(selected):
        # To ask a GPU for P is a wait. The threshold, which a selected token reaches, often does.
        at = may_change(scores.is_open, math.log(policy.threshold))
        if len(at) <= FEW_DRAWS:
            return at
    logprob, is_selected = fetch(scores.logprob, selected)
    return may_change(is_selected, logprob)
