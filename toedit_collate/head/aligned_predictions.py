"""Predictions of a prior that has another tokenizer than the trainee."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..policy import EditPolicy
from ..transfer import send
from .candidates import Candidates, draw_among, find_candidates
from .groups import GroupColumns, IdGroups, LeadingMembers, leading_members
from .logprob import Scores, exact_logprob, score_observed
from .predictions import Predictions, repeated
from .projection import project_rows, tile_elements, write_at


@dataclass(frozen=True)
class Chains:
    """The requests of n tokens of the trainee, on the host."""

    begin: Tensor  # (n,) int64, the first request of each token
    length: Tensor  # (n,) int64, its number of requests: the tokens of its chain
    prior_tokens: Tensor  # (R,) int64, the prior's token at each request
    is_bounded: Tensor  # (n,) bool, whether the last group of the chain has members
    # covered bytes of a chain, as ids of the prior -> which ids of the prior make each token of the
    # trainee the first after them
    first_after: Callable[[tuple[int, ...]], GroupColumns]


@dataclass(frozen=True, kw_only=True)
class AlignedPredictions(Predictions):
    """`Predictions` at n tokens of the trainee, by R requests to the prior's head.

    V ids of the prior, W of the trainee. `states` are (R, D), of the requests; `tokens` and
    `forbidden` are ids of the trainee.
    """

    groups: IdGroups  # of the requests, on the device of the states
    chains: Chains  # of the tokens
    num_ids: int  # W
    warn_about: Callable[[EditPolicy], None]  # warns once if lower bounds of P do not suit a policy

    @functools.cached_property
    def _budget(self) -> int:
        """Number of logits to hold at once."""
        return tile_elements(len(self.states), self.head.vocab_size, self.device)

    @functools.cached_property
    def _leading(self) -> LeadingMembers:
        states = self.head.ready(self.states)
        return leading_members(self.head, states, self.groups, budget=self._budget)

    def score(self, policy: EditPolicy, *, exact: bool = False) -> Scores:
        """Log P of the observed tokens, or a lower bound of it; see `Predictions`."""
        self.warn_about(policy)
        leading = self._leading
        scores = score_observed(
            self.head,
            self.states,
            leading.ids,
            lowest_cut=policy.lowest_cut - leading.surplus,
            competitors=None if exact else self.competitors(self.head, self.states),
        )
        logprob = (scores.logprob + leading.surplus).clamp_(max=0)
        if len(self.states) == len(self.tokens):
            return dataclasses.replace(scores, logprob=logprob)
        n = len(self.tokens)
        token = torch.arange(n).repeat_interleave(self.chains.length)

        def all_of(flags: Tensor) -> Tensor:
            return torch.ones(n, dtype=torch.bool).index_fill_(0, token[~flags], False)

        logprob = self._summed(logprob, send(token, self.device), n)
        return Scores(logprob, all_of(scores.is_open), all_of(scores.is_finite))

    @staticmethod
    def _summed(logprob: Tensor, token_of: Tensor, n: int) -> Tensor:
        """The sums over chains; in float64, so that their order does not matter."""
        total = torch.zeros(n, dtype=torch.float64, device=logprob.device)
        return total.index_add_(0, token_of, logprob.double()).float()

    def exact_logprob(self, at: Tensor) -> Tensor:
        """Exact log P of some observed tokens; see `Predictions`.

        Tokens whose only known lower bound is 0 are left out: they say nothing about the
        perplexity.
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
        own = exact_logprob(
            self.head, self.states[there], self._leading.ids[there], budget=self._budget
        )
        logprob = (own + self._leading.surplus[there]).clamp_(max=0)
        return self._summed(logprob, send(token, self.device), len(at))

    @property
    def _num_outcomes(self) -> int:
        return self.num_ids + 1  # all tokens, and one more outcome: a chain may continue

    @property
    def _chain_length(self) -> Tensor:
        return self.chains.length

    def _draw(self, policy: EditPolicy, at: Tensor, observed: Tensor, uniforms: Tensor) -> Tensor:
        drawn = torch.zeros(uniforms.shape, dtype=torch.int64, device=self.device)
        of_one = self.chains.length[at] == 1
        for part, draw in ((of_one, self._draw_plain), (~of_one, self._draw_chained)):
            if part.any():
                rows = send(part.nonzero().squeeze(-1), self.device)
                drawn[rows] = draw(policy, at[part], observed[rows], uniforms[rows])
        return drawn

    def _draw_plain(
        self, policy: EditPolicy, at: Tensor, observed: Tensor, uniforms: Tensor
    ) -> Tensor:
        own = self._columns_of(observed)
        drawn = super()._draw(policy, at, own, uniforms)
        is_own = drawn == repeated(own, drawn)
        return torch.where(is_own, repeated(observed, drawn), self._ids_of_columns[drawn])

    def _draw_chained(
        self, policy: EditPolicy, at: Tensor, observed: Tensor, uniforms: Tensor
    ) -> Tensor:
        columns = min(policy.top_k, self.num_ids) if policy.sampler == "top_k" else self.num_ids
        most = max(1, self._budget // columns)
        parts = zip(*(x.split(most) for x in (at, observed, uniforms)), strict=True)
        drawn = (
            draw_among(self._of_chains(policy, some), own, numbers, policy.temperature)
            for some, own, numbers in parts
        )
        return torch.cat(list(drawn))

    @functools.cached_property
    def _columns(self) -> GroupColumns:
        return self.chains.first_after(()).to(self.device)

    @functools.cached_property
    def _ids_of_columns(self) -> Tensor:
        """Of `_columns`, and one more for tokens that no id of the prior begins: (G + 1,) int64."""
        return F.pad(self._columns.ids, (0, 1), value=self.num_ids - 1)

    def _columns_of(self, tokens: Tensor) -> Tensor:
        """The columns of some tokens of the trainee; G for those that have none."""
        ids = self._columns.ids
        place = torch.searchsorted(ids, tokens).clamp_(max=len(ids) - 1)
        return torch.where(ids[place] == tokens, place, len(ids))

    def _forbidden(self, policy: EditPolicy) -> Tensor:
        return self._columns_of(super()._forbidden(policy))

    def _tiles(
        self, at: Tensor, *columns: Tensor, many: bool = False
    ) -> Iterator[tuple[Tensor, ...]]:
        """Logits of `_columns` at tokens that make one request, and -inf in one more column."""
        for logits, *rest in super()._tiles(self.chains.begin[at], *columns):
            yield self._columns.logits(logits, -math.inf), *rest

    def candidates(self, policy: EditPolicy, at: Tensor) -> Iterator[Candidates]:
        if len(at) == 0:
            return
        most = int(self.chains.length[at].max())
        for some in at.split(max(1, self._budget // max(self.head.vocab_size, self.num_ids))):
            yield self._of_some(policy, some, most)

    def _of_some(self, policy: EditPolicy, at: Tensor, most: int) -> Candidates:
        """Candidates of some tokens, in as many columns as chains of `most` tokens can need."""
        of_one = self.chains.length[at] == 1
        own = self._columns_of(self.tokens[send(at[of_one], self.device)])
        forbidden = self._forbidden(policy)
        found = []
        for tile in self._tiles(at[of_one], own):
            if len(tile[0]):
                some = find_candidates(policy, forbidden, *tile)
                found.append(Candidates(self._ids_of_columns[some.ids], some.logits))
        if most == 1 and len(found) == 1:
            return found[0]
        if not of_one.all():
            found.append(self._of_chains(policy, at[~of_one]))
        width = max(one.ids.shape[-1] for one in found)
        if policy.sampler == "top_k" and most > 1:
            width = min(policy.top_k, self.num_ids) * most
        ids = self.tokens.new_zeros(len(at), width)
        logits = self.states.new_full((len(at), width), -math.inf, dtype=torch.float32)
        place = send(torch.cat([of_one.nonzero(), (~of_one).nonzero()]).squeeze(-1), self.device)
        for one, rows in zip(found, place.split([len(one.ids) for one in found]), strict=True):
            ids[rows, : one.ids.shape[-1]] = one.ids
            logits[rows, : one.ids.shape[-1]] = one.logits
        return Candidates(ids, logits)

    def _of_chains(self, policy: EditPolicy, at: Tensor) -> Candidates:
        """Candidates of tokens with chains of several.

        At each token of the chain but the last, the sampler draws among continuing the chain and
        the trainee's tokens that other ids of the prior begin with; at the last, among these. So
        the new token follows a mixture, whose shares are returned as logits.
        """
        observed = self.tokens[send(at, self.device)].unsqueeze(-1)
        ids, shares = self._mixtures(_with_original(policy), at)
        if policy.exclude_original:
            shares.masked_fill_(ids == observed, 0)
            alone = ~shares.any(-1)
            if alone.any():  # the most probable other token
                full = _with_original(policy, sampler="full")
                others, other_shares = self._mixtures(full, at[alone.cpu()])
                other_shares.masked_fill_(others == observed[alone], 0)
                ids[alone] = others.gather(-1, other_shares.argmax(-1, keepdim=True))
                shares[alone, 0] = 1.0
        is_candidate = shares > 0
        order = torch.where(is_candidate, ids, self.num_ids).argsort(dim=-1, stable=True)
        order = order[:, : max(1, int(is_candidate.sum(-1).max()))]
        logits = (shares.gather(-1, order).log() * policy.temperature).float()
        return Candidates(ids.gather(-1, order).masked_fill_(logits == -math.inf, 0), logits)

    def _mixtures(self, policy: EditPolicy, at: Tensor) -> tuple[Tensor, Tensor]:
        """The shares of the trainee's ids among what n chains can become.

        Returns:
            (n, m) int64, ids, ascending in each row; and (n, m) float64, the share of each: 0 at
            repetitions of an id and where there is none.
        """
        length = self.chains.length[at]
        begin = length.cumsum(0) - length
        number = torch.arange(int(length.sum())) - begin.repeat_interleave(length)
        request = self.chains.begin[at].repeat_interleave(length) + number
        step_ids, step_shares = self._of_requests(
            policy, request, number, number + 1 == length.repeat_interleave(length)
        )
        goes_on = step_ids == self.num_ids
        on_share = torch.where(goes_on, step_shares, 0.0).sum(-1)
        step_shares.masked_fill_(goes_on, 0.0)
        most = int(length.max())
        ids = step_ids.new_full((len(at), most, step_ids.shape[-1]), self.num_ids)
        shares = step_shares.new_zeros(ids.shape)
        reached = step_shares.new_ones(len(at))
        for n in range(most):
            token = (length > n).nonzero().squeeze(-1)
            step, token = send(begin[token] + n, self.device), send(token, self.device)
            ids[token, n] = step_ids[step]
            shares[token, n] = step_shares[step] * reached[token].unsqueeze(-1)
            reached[token] *= on_share[step]
        ids, order = ids.flatten(1).sort(dim=-1, stable=True)
        shares = shares.flatten(1).gather(-1, order)
        # A row has an id at most once for each token of the chain: add these up in order.
        total = shares.clone()
        for n in range(1, most):
            total[:, :-n] += torch.where(ids[:, n:] == ids[:, :-n], shares[:, n:], 0.0)
        total[:, 1:].masked_fill_(ids[:, 1:] == ids[:, :-1], 0.0)
        return ids, total

    def _of_requests(
        self, policy: EditPolicy, request: Tensor, number: Tensor, is_last: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the sampler draws among at R requests of chains, the observed token included.

        `request` and `number`, the tokens of the chain before it, are (R,) int64. Unless
        `is_last`, (R,) bool, the chain can continue.

        Returns:
            (R, c) int64, ids of the trainee, `num_ids` for continuing; (R, c) float64, their
            shares.
        """
        W = self.num_ids
        tables: dict[tuple[int, ...], int] = {}
        tokens = self.chains.prior_tokens.tolist()
        places = zip((request - number).tolist(), request.tolist(), strict=True)
        covered = [tuple(tokens[start:stop]) for start, stop in places]
        which = torch.tensor([tables.setdefault(key, len(tables)) for key in covered])
        keys = list(tables)
        order = which.argsort(stable=True)  # so that few tables are needed at once
        is_forbidden = torch.zeros(W, dtype=torch.bool, device=self.device)
        is_forbidden[super()._forbidden(policy)] = True
        chained = send(self.chains.prior_tokens[request], self.device).unsqueeze(-1)
        ends = send(is_last, self.device).unsqueeze(-1)
        found = []
        for logits, rows in project_rows(
            self.head, self.states[send(request[order], self.device)], order
        ):
            used, counts = which[rows].unique_consecutive(return_counts=True)
            for key, some, part in zip(
                used.tolist(), rows.split(counts.tolist()), logits.split(counts.tolist()),
                strict=True,
            ):  # fmt: skip
                groups = self.chains.first_after(keys[key]).to(self.device)
                there = send(some, self.device)
                going_on = part.gather(1, chained[there])
                at_end = going_on.masked_fill(~ends[there], -math.inf)
                write_at(part, chained[there].squeeze(-1), at_end.squeeze(-1))
                going_on = going_on.float().masked_fill_(ends[there], -math.inf)
                of_groups = groups.logits(part, going_on)
                of_groups[:, :-1].masked_fill_(is_forbidden[groups.ids], -math.inf)
                none = there[:0]
                drawn = find_candidates(policy, none, of_groups, none)
                share = (drawn.logits.double() / policy.temperature).softmax(-1)
                found.append((some, F.pad(groups.ids, (0, 1), value=W)[drawn.ids], share))
        columns = max(ids.shape[-1] for _, ids, _ in found)
        all_ids = self.tokens.new_full((len(request), columns), W)
        shares = all_ids.new_zeros(all_ids.shape, dtype=torch.float64)
        for some, ids, share in found:
            there = send(some, self.device)
            all_ids[there, : ids.shape[-1]] = ids
            shares[there, : ids.shape[-1]] = share
        return all_ids, shares


def _with_original(policy: EditPolicy, **changes: Any) -> EditPolicy:
    """A policy that may draw the observed token, made without the warnings of `EditPolicy`."""
    other = copy.copy(policy)
    for name, value in {"exclude_original": False, **changes}.items():
        object.__setattr__(other, name, value)
    return other
