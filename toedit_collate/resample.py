"""Drawing the replacement of a selected token: which candidates, with which weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .head import Head, row_tiles
from .policy import EditPolicy


def surely_kept(
    uniforms: Tensor, logprob: Tensor, policy: EditPolicy, *, num_candidates: int
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
        logprob: (n,) exact log P of the observed tokens, nats.
        policy: sampler, `top_k`, temperature, `exclude_original`.
        num_candidates: the most candidates there can be.

    Returns:
        (n,) bool.
    """
    if policy.exclude_original:
        return torch.zeros_like(uniforms, dtype=torch.bool)
    logprob = logprob.double()
    share = logprob.exp()
    if policy.temperature > 1 and num_candidates > 1:
        log_others = torch.log(-torch.expm1(logprob))
        spread = (1 - 1 / policy.temperature) * math.log(num_candidates - 1)
        share = torch.sigmoid((logprob - log_others) / policy.temperature - spread)
    return (logprob > math.log(0.5)) & (uniforms < share)


def draw_tokens(
    head: Head,
    hidden: Tensor,
    observed: Tensor,
    uniforms: Tensor,
    policy: EditPolicy,
    forbidden: Tensor,
) -> Tensor:
    """Draw the replacements of n selected tokens.

    By inversion, with one uniform per token and the observed token at the beginning of the scale:
    a draw below its share keeps it (which is what `surely_kept` relies on), a higher one falls on
    the other candidates in the order of their ids. Weights are float64.

    Args:
        head: of the prior; V ids.
        hidden: (n, D), the hidden states that predict the tokens.
        observed: (n,) int64, the tokens as they are.
        uniforms: (n,) float64, in [0, 1).
        policy: sampler, temperature, `exclude_original`.
        forbidden: (V,) bool, ids that must not be drawn; not all of them.

    Returns:
        (n,) int64, the replacements.
    """
    if len(observed) == 0:
        return observed
    drawn = [
        _draw(head.logits(h), o, u, policy, forbidden)
        for h, o, u in row_tiles(head, hidden, observed, uniforms)
    ]
    return torch.cat(drawn)


def _draw(
    logits: Tensor, observed: Tensor, uniforms: Tensor, policy: EditPolicy, forbidden: Tensor
) -> Tensor:
    logits = (logits / policy.temperature).masked_fill_(forbidden, -math.inf)
    own = observed.unsqueeze(-1)
    candidates = _candidates(logits, policy)
    if policy.exclude_original:
        candidates.scatter_(-1, own, False)
        runner_up = logits.scatter(-1, own, -math.inf).argmax(-1, keepdim=True)
        left_none = ~candidates.any(-1, keepdim=True)
        candidates.scatter_(-1, runner_up, candidates.gather(-1, runner_up) | left_none)
    logits = logits.masked_fill_(~candidates, -math.inf).double()
    weights = torch.exp(logits - logits.amax(-1, keepdim=True))
    own_weight = weights.gather(-1, own).squeeze(-1)
    target = uniforms * weights.sum(-1) - own_weight
    scale = weights.scatter_(-1, own, 0.0).cumsum(-1)
    # Rounding may put `target` at the very end of the scale: stop at its last step.
    target = torch.minimum(target, torch.nextafter(scale[:, -1], torch.zeros_like(target)))
    other = torch.searchsorted(scale, target.unsqueeze(-1), right=True).squeeze(-1)
    return torch.where(target < 0, observed, other)


def _candidates(logits: Tensor, policy: EditPolicy) -> Tensor:
    """Which ids the sampler admits: (n, V) tempered logits -> (n, V) bool; -inf is never one."""
    possible = logits > -math.inf
    if policy.sampler == "rejection":
        return possible
    if policy.sampler == "top_k":
        # Equal logits are common in bf16, and topk takes any of them: settle ties by id, or the
        # edit would depend on the shape of the batch.
        k = min(policy.top_k, logits.shape[-1])
        least = logits.topk(k, dim=-1).values[:, -1:]
        above, equal = logits > least, logits == least
        room = k - above.sum(-1, keepdim=True)
        return (above | (equal & (equal.cumsum(-1) <= room))) & possible
    ordered, ids = logits.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    mass_before = ordered.cumsum(-1) - ordered
    inside = mass_before < policy.top_p
    inside[:, 0] = True
    return torch.zeros_like(possible).scatter_(-1, ids, inside) & possible
