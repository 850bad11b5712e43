"""Drawing the replacement of a selected token: which candidates, with which weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..policy import EditPolicy
from .projection import Head, row_tiles

# Draws take several float64 tensors of the size of a tile of logits.
_TILE_SHARE = 1 / 8


@dataclass(frozen=True)
class Candidates:
    """Among what n tokens are drawn.

    Attributes:
        ids: (n, c) int64, ascending in each row.
        logits: (n, c) float32, before the temperature; -inf where an id is no candidate.
    """

    ids: Tensor
    logits: Tensor


def surely_kept(
    uniforms: Tensor,
    logprob: Tensor | float,
    policy: EditPolicy,
    *,
    num_candidates: int,
    num_draws: Tensor | None = None,
) -> Tensor:
    """Which draws give back the observed token whatever the candidates are: lazy resample.

    A draw keeps the observed token if its uniform lies under the token's share of the candidates.
    That share has a lower bound which P alone tells, for a token with P > 1/2 (so that it is the
    most probable one, hence a candidate): at temperatures up to 1 the share is at least P, since
    cooling and leaving out candidates only raise it. At a temperature T above 1, the m other
    candidates share at most 1 - P, and their weights p^(1/T) add up to most if they share it
    evenly: share >= P^(1/T) / (P^(1/T) + m^(1 - 1/T) (1 - P)^(1/T)).

    Args:
        uniforms: (n,) float64, in [0, 1).
        logprob: (n,) log P of the observed tokens, nats; or a number that none is below.
        policy: sampler, `top_k`, temperature, `exclude_original`.
        num_candidates: the most candidates there can be.
        num_draws: (n,) int64, of how many draws, one after another, each one's P is a factor of P,
            where a token is kept if all of them keep it; None: of one.

    Returns:
        (n,) bool.
    """
    if policy.exclude_original:
        return torch.zeros_like(uniforms, dtype=torch.bool)
    logprob = torch.as_tensor(logprob, dtype=torch.float64)
    share = logprob.exp()
    if policy.temperature > 1 and num_candidates > 1:
        log_others = torch.log(-torch.expm1(logprob))
        spread = (1 - 1 / policy.temperature) * math.log(num_candidates - 1)
        share = torch.sigmoid((logprob - log_others) / policy.temperature - spread)
        if num_draws is not None:  # each of them has a P of at least the product
            share = share**num_draws
    return (logprob > math.log(0.5)) & (uniforms < share)


def draw_tokens(
    head: Head,
    hidden: Tensor,
    observed: Tensor,
    uniforms: Tensor,
    policy: EditPolicy,
    forbidden: Tensor,
    budget: int,
) -> Tensor:
    """Draw the replacements of n selected tokens.

    Args:
        head: of the prior; V ids.
        hidden: (n, D), the hidden states that predict the tokens.
        observed: (n,) int64, the tokens as they are.
        uniforms: (n,) float64, in [0, 1).
        policy: sampler, temperature, `exclude_original`.
        forbidden: (V,) bool, ids that must not be drawn; not all of them.
        budget: number of logits to hold at once.

    Returns:
        (n,) int64, the replacements.
    """
    if len(observed) == 0:
        return observed
    drawn = [
        draw_among(find_candidates(head, h, o, policy, forbidden), o, u, policy.temperature)
        for h, o, u in row_tiles(head, int(budget * _TILE_SHARE), hidden, observed, uniforms)
    ]
    return torch.cat(drawn)


def find_candidates(
    head: Head, hidden: Tensor, observed: Tensor, policy: EditPolicy, forbidden: Tensor
) -> Candidates:
    """Which ids the sampler admits in place of n tokens; arguments as for `draw_tokens`."""
    logits = head.logits(hidden).masked_fill_(forbidden, -math.inf)
    own = observed.unsqueeze(-1)
    if policy.sampler == "top_k":
        return _most_probable(logits, own, policy)
    admitted = logits > -math.inf
    if policy.sampler == "top_p":
        admitted &= _nucleus(logits / policy.temperature, policy.top_p)
    if policy.exclude_original:
        admitted.scatter_(-1, own, False)
        runner_up = logits.scatter(-1, own, -math.inf).argmax(-1, keepdim=True)
        left_none = ~admitted.any(-1, keepdim=True)
        admitted.scatter_(-1, runner_up, admitted.gather(-1, runner_up) | left_none)
    ids = torch.arange(logits.shape[-1], device=logits.device).expand(logits.shape)
    return Candidates(ids, logits.masked_fill_(~admitted, -math.inf))


def draw_among(
    candidates: Candidates, observed: Tensor, uniforms: Tensor, temperature: float
) -> Tensor:
    """Draw one candidate for each of n tokens.

    By inversion, with one uniform per token and the observed token at the beginning of the scale:
    a draw below its share keeps it (which is what `surely_kept` relies on), a higher one falls on
    the other candidates in the order of their ids. Weights are float64.

    Args:
        candidates: of the tokens; at least one for each.
        observed: (n,) int64, the tokens as they are.
        uniforms: (n,) float64, in [0, 1).
        temperature: of the draw.

    Returns:
        (n,) int64.
    """
    logits = candidates.logits.double() / temperature
    weights = torch.exp(logits - logits.amax(-1, keepdim=True))
    is_own = candidates.ids == observed.unsqueeze(-1)
    own_weight = torch.where(is_own, weights, 0.0).sum(-1)
    scale = weights.masked_fill_(is_own, 0.0).cumsum(-1)
    # Not the sum of the weights: that would depend on how many columns there are.
    target = uniforms * (scale[:, -1] + own_weight) - own_weight
    # Rounding may put `target` at the very end of the scale: stop at its last step.
    target = torch.minimum(target, torch.nextafter(scale[:, -1], torch.zeros_like(target)))
    place = torch.searchsorted(scale, target.unsqueeze(-1), right=True)
    other = candidates.ids.gather(-1, place.clamp_(max=scale.shape[-1] - 1)).squeeze(-1)
    return torch.where(target < 0, observed, other)


def _most_probable(logits: Tensor, own: Tensor, policy: EditPolicy) -> Candidates:
    """The `top_k` most probable ids, or those of them that are not the observed one."""
    V = logits.shape[-1]
    k = min(policy.top_k, V)
    # With the observed token left out of k = 1, the runner-up takes its place.
    num_looked_at = min(max(k, 2), V) if policy.exclude_original else k
    if num_looked_at == k and type(logits) is Tensor and logits.device.type == "cpu":
        ranked = _top_ids(logits, k)
    else:  # the ranks themselves count, or a look at the ties would make the host wait
        ranked = _by_logit_then_id(logits).topk(num_looked_at, dim=-1).indices
    admitted = torch.arange(num_looked_at, device=logits.device) < k
    if policy.exclude_original:
        others = ranked != own
        admitted = admitted & others
        admitted |= others & ~admitted.any(-1, keepdim=True)
    values = logits.gather(-1, ranked).masked_fill(~admitted, -math.inf)
    ids, order = ranked.sort(dim=-1)
    return Candidates(ids, values.gather(-1, order))


def _top_ids(logits: Tensor, k: int) -> Tensor:
    """The `k` largest of each row, in any order: (n, V) -> (n, k) int64.

    The keys that settle ties cost five times what topk does, so only rows get them whose k-th
    largest logit is also the next one's.
    """
    n, V = logits.shape
    if k == V:
        return torch.arange(V).expand(n, V)
    values, ids = logits.topk(k + 1, dim=-1)
    tied = values[:, -1] == values[:, -2]
    ids = ids[:, :k]
    if tied.any():
        ids[tied] = _by_logit_then_id(logits[tied]).topk(k, dim=-1).indices
    return ids


def _by_logit_then_id(logits: Tensor) -> Tensor:
    """Whole numbers in the order of the logits; of equal ones, the lower id is the larger: int64.

    Equal logits are common in bf16, and topk takes any of them: then the edit would depend on the
    shape of the batch.
    """
    # + 0.0 makes -0.0 and 0.0 the same. Negative floats, as bits, go up when they go down.
    bits = (logits + 0.0).view(torch.int32)
    bits ^= (bits >> 31).bitwise_and_(0x7FFFFFFF)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    return bits.long().bitwise_left_shift_(32).sub_(ids)


def _nucleus(tempered: Tensor, top_p: float) -> Tensor:
    """The fewest ids that hold at least `top_p`: (n, V) logits -> (n, V) bool."""
    ordered, ids = tempered.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    mass_before = ordered.cumsum(-1) - ordered
    inside = mass_before < top_p
    inside[:, 0] = True
    return torch.zeros_like(tempered, dtype=torch.bool).scatter_(-1, ids, inside)
