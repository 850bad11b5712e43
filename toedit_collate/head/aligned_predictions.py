"""What a prior with another tokenizer predicts at tokens of the trainee."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..policy import EditPolicy
from ..transfer import send
from .candidates import Candidates, draw_among, draw_tokens, find_candidates
from .groups import (
    Heads,
    IdGroups,
    exact_group_logprob,
    group_logits,
    leading_members,
    score_groups,
)
from .logprob import Competitors, Scores
from .predictions import places_to_draw, repeated
from .projection import Head, project_rows, tile_elements


@dataclass(frozen=True)
class Chains:
    """Which requests n tokens of the trainee make, on the host.

    Attributes:
        begin: (n,) int64, the first request of each token.
        length: (n,) int64, how many requests it makes: the tokens of its chain.
        prior_tokens: (R,) int64, the prior's token at each request.
        is_bounded: (n,) bool: the last group of the chain is not empty.
        first_behind: covered bytes of a chain, as ids of the prior -> (V,) int64, the trainee's
            first token behind them for each id; -1: none.
    """

    begin: Tensor
    length: Tensor
    prior_tokens: Tensor
    is_bounded: Tensor
    first_behind: Callable[[tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class AlignedPredictions:
    """`Predictions` at n tokens of the trainee, by R requests to the prior's head.

    V ids of the prior, W of the trainee.

    Attributes:
        head: of the prior.
        states: (R, D), the hidden states that predict the prior's tokens.
        tokens: (n,) int64, the trainee's tokens, on the device of the states.
        token_of: (R,) int64 there: for which token a request is.
        groups: of the requests, there.
        chains: of the tokens.
        first: (V,) int64 there: the group of each id of the prior; W: none.
        num_ids: W.
        forbidden: (m,) int64, ids of the trainee that must not be drawn, special ones or not.
        competitors: measures on states, or remembers, which ids the head should visit first.
        look_at: at the policy of scores, so that the prior can warn of it.
    """

    head: Head
    states: Tensor
    tokens: Tensor
    token_of: Tensor
    groups: IdGroups
    chains: Chains
    first: Tensor
    num_ids: int
    forbidden: Callable[[bool], Tensor]
    competitors: Callable[[Tensor], Competitors | None]
    look_at: Callable[[EditPolicy], None]

    @property
    def device(self) -> torch.device:
        """Where scores and draws are computed."""
        return self.states.device

    @functools.cached_property
    def _budget(self) -> int:
        """Number of logits to hold at once."""
        return tile_elements(len(self.states), self.head.vocab_size, self.device)

    @functools.cached_property
    def _leading(self) -> Heads:
        states = self.head.ready(self.states)
        return leading_members(self.head, states, self.groups, budget=self._budget)

    def score(self, policy: EditPolicy, *, exact: bool = False) -> Scores:
        """Log P of the observed tokens; see `Predictions`."""
        self.look_at(policy)
        if len(self.tokens) == 0:
            none = torch.zeros(0, dtype=torch.bool)
            return Scores(self.states.new_zeros(0, dtype=torch.float32), none, none)
        scores = score_groups(
            self.head,
            self.states,
            self._leading,
            lowest_cut=policy.lowest_cut,
            competitors=None if exact else self.competitors(self.states),
        )
        if len(self.states) == len(self.tokens):
            return scores
        places = self.chains.begin.repeat_interleave(self.chains.length)
        token = places.unique_consecutive(return_inverse=True)[1]
        n = len(self.tokens)

        def all_of(flags: Tensor) -> Tensor:
            return torch.zeros(n).index_add_(0, token, (~flags).float()) == 0

        logprob = self._summed(scores.logprob, self.token_of, n)
        return Scores(logprob, all_of(scores.is_open), all_of(scores.is_finite))

    @staticmethod
    def _summed(logprob: Tensor, token_of: Tensor, n: int) -> Tensor:
        """The sums over chains; in float64, so that their order does not matter."""
        total = torch.zeros(n, dtype=torch.float64, device=logprob.device)
        return total.index_add_(0, token_of, logprob.double()).float()

    def exact_logprob(self, at: Tensor) -> Tensor:
        """Log P of some observed tokens; no wait for the device.

        Those of which nothing but 0 is known as a lower bound are left out: as a sample of the
        perplexity they would say nothing.
        """
        at = at[self.chains.is_bounded[at]]
        length = self.chains.length[at]
        if len(at) == 0:
            return self.states.new_zeros(0, dtype=torch.float32)
        ends = length.cumsum(0)
        offset = self.chains.begin[at] - (ends - length)
        rows = torch.arange(int(ends[-1])) + offset.repeat_interleave(length)
        token = torch.arange(len(at)).repeat_interleave(length)
        there = send(rows, self.device)
        leading = Heads(self._leading.ids[there], self._leading.surplus[there])
        logprob = exact_group_logprob(
            self.head, self.head.ready(self.states[there]), leading, budget=self._budget
        )
        return self._summed(logprob, send(token, self.device), len(at))

    def draw(
        self, policy: EditPolicy, scores: Scores, selected: Tensor, uniforms: Tensor
    ) -> Tensor:
        """Resample the selected tokens; see `Predictions`."""
        new_tokens = repeated(self.tokens, uniforms)
        at = places_to_draw(
            policy,
            scores,
            selected,
            uniforms,
            # One outcome more than there are tokens: a chain may go on.
            num_ids=self.num_ids + 1,
            chain_length=self.chains.length,
        )
        of_one = self.chains.length[at] == 1
        for some, draw in ((at[of_one], self._draw_plain), (at[~of_one], self._draw_chained)):
            if len(some):
                there = send(some, self.device)
                drawn = draw(policy, some, self.tokens[there], send(uniforms[some], self.device))
                is_new = repeated(selected[there], drawn)
                new_tokens[there] = torch.where(is_new, drawn, new_tokens[there])
        return new_tokens

    def _draw_plain(
        self, policy: EditPolicy, at: Tensor, observed: Tensor, uniforms: Tensor
    ) -> Tensor:
        forbidden = self.forbidden(policy.protect_special)
        tiles = self._in_tiles(at, observed, uniforms)
        return torch.cat([draw_tokens(policy, forbidden, *tile) for tile in tiles])

    def _draw_chained(
        self, policy: EditPolicy, at: Tensor, observed: Tensor, uniforms: Tensor
    ) -> Tensor:
        found = _side_by_side([self._of_chain(policy, one) for one in at.tolist()])
        return draw_among(found, observed, uniforms, policy.temperature)

    def _in_tiles(self, at: Tensor, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The trainee's logits at tokens that make one request, as from `project_rows`."""
        states = self.states[send(self.chains.begin[at], self.device)]
        for logits, *rest in project_rows(self.head, states, *columns):
            yield group_logits(logits, self.first, self.num_ids), *rest

    def candidates(self, policy: EditPolicy, at: Tensor) -> Iterator[Candidates]:
        """Among what the tokens at some places are resampled; see `Predictions`."""
        if len(at) == 0:
            return
        most = int(self.chains.length[at].max())
        for some in at.split(max(1, self._budget // max(self.head.vocab_size, self.num_ids))):
            yield self._of_some(policy, some, most)

    def _of_some(self, policy: EditPolicy, at: Tensor, most: int) -> Candidates:
        """Candidates of some tokens; as many columns as chains of `most` tokens can need."""
        of_one = self.chains.length[at] == 1
        forbidden = self.forbidden(policy.protect_special)
        plain = [
            find_candidates(policy, forbidden, *tile)
            for tile in self._in_tiles(at[of_one], self.tokens[send(at[of_one], self.device)])
            if len(tile[0])
        ]
        if most == 1 and len(plain) == 1:
            return plain[0]
        one_by_one = [Candidates(i, x) for p in plain for i, x in zip(p.ids, p.logits, strict=True)]
        chained = [self._of_chain(policy, one) for one in at[~of_one].tolist()]
        ordered = [chained.pop(0) if not one else one_by_one.pop(0) for one in of_one.tolist()]
        width = None
        if policy.sampler == "top_k" and most > 1:
            width = min(policy.top_k, self.num_ids) * most
        return _side_by_side(ordered, width)

    def _of_chain(self, policy: EditPolicy, token: int) -> Candidates:
        """Candidates of one token with a chain of several, as one row: (c,).

        At each token of the chain but the last, the sampler draws among going on with the chain and
        the trainee's tokens that other ids of the prior begin with; at the last, among these. So
        the new token follows a mixture, whose shares are given as logits.
        """
        begin, length = int(self.chains.begin[token]), int(self.chains.length[token])
        chain = self.chains.prior_tokens[begin : begin + length].tolist()
        observed = self.tokens[token : token + 1]
        shares = self._mixture(_with_original(policy), begin, chain, observed)
        if policy.exclude_original:
            shares[observed] = 0
            if not bool(shares.any()):
                full = _with_original(policy, sampler="full")
                shares = self._mixture(full, begin, chain, observed)
                shares[observed] = 0
                shares = torch.zeros_like(shares).index_fill_(0, shares.argmax(), 1.0)
        ids = shares.nonzero().squeeze(-1)
        return Candidates(ids, (shares[ids].log() * policy.temperature).float())

    def _mixture(
        self, policy: EditPolicy, begin: int, chain: list[int], observed: Tensor
    ) -> Tensor:
        """The share of each of the trainee's ids among what a chain can become: (W,) float64."""
        forbidden = self.forbidden(policy.protect_special)
        W = self.num_ids
        shares = torch.zeros(W, dtype=torch.float64, device=self.device)
        reached = torch.ones((), dtype=torch.float64, device=self.device)
        go_on = torch.full_like(observed, W)
        for number, prior_token in enumerate(chain):
            is_last = number == len(chain) - 1
            group = self.first if number == 0 else self._behind(tuple(chain[:number]), W)
            group = torch.where(group == W, W + 1, group)
            if not is_last:
                group[prior_token] = W
            logits = self.head.project(self.states[begin + number : begin + number + 1])
            found = find_candidates(
                policy,
                forbidden,
                group_logits(logits, group, W + 1),
                observed if is_last else go_on,
            )
            share = (found.logits[0].double() / policy.temperature).softmax(-1)
            goes_on = found.ids[0] == W
            shares.index_add_(
                0, found.ids[0].clamp(max=W - 1), torch.where(goes_on, 0.0, share) * reached
            )
            reached = reached * torch.where(goes_on, share, 0.0).sum()
        return shares

    def _behind(self, covered: tuple[int, ...], W: int) -> Tensor:
        group = self.chains.first_behind(covered)
        padding = group.new_full((self.head.vocab_size - len(group),), -1)
        group = send(torch.cat([group, padding]), self.device)
        return torch.where(group < 0, W, group)


def _with_original(policy: EditPolicy, **changes: Any) -> EditPolicy:
    """A policy that may draw the observed token; no user asked for it, so nothing is warned of."""
    other = copy.copy(policy)
    for name, value in {"exclude_original": False, **changes}.items():
        object.__setattr__(other, name, value)
    return other


def _side_by_side(rows: list[Candidates], width: int | None = None) -> Candidates:
    """Rows of candidates as one, each filled up to a width: by default that of the longest."""
    width = max(len(row.ids) for row in rows) if width is None else width
    ids = rows[0].ids.new_zeros(len(rows), width)
    logits = rows[0].logits.new_full((len(rows), width), -math.inf)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = row.ids
        logits[number, : len(row.ids)] = row.logits
    return Candidates(ids, logits)
