"""Draws the replacement of a selected token among candidates.

Every draw is an inversion with one uniform: the observed token comes first on the scale, then the
other candidates in the order of their ids. So a draw below the observed token's share keeps it.
`surely_kept` relies on this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..policy import EditPolicy
from ..transfer import on_host
from .projection import exp_pieces, rows_at_once, write_at

# Numbers of ids whose sum, or maximum, is computed before single ids are looked at.
CHUNK = 64
TOP_CHUNK = 32
# A nucleus is searched among the 64 most probable ids, then among 8 times as many, and so on.
FIRST_NUCLEUS = 64
NUCLEUS_GROWTH = 8


@dataclass(frozen=True)
class Candidates:
    """The candidates of n tokens."""

    ids: Tensor  # (n, c) int64, ascending in each row
    logits: Tensor  # (n, c) float32, before the temperature; -inf where an id is no candidate


def surely_kept(
    uniforms: Tensor,
    logprob: Tensor | float,
    policy: EditPolicy,
    *,
    num_candidates: int,
    chain_length: Tensor | None = None,
) -> Tensor:
    """Which draws return the observed token whatever the candidates are: (n,) bool. Lazy resample.

    A draw keeps the observed token if its uniform is below the token's share of the candidates. P
    alone gives a lower bound of that share, for a token with P > 1/2 (the most probable one, so a
    candidate). At temperatures up to 1 the share is at least P, since cooling and leaving out
    candidates only raise it. At a temperature T above 1, the m other candidates share at most 1 -
    P, and the sum of their weights p^(1/T) is largest if they share it evenly:
    share >= P^(1/T) / (P^(1/T) + m^(1 - 1/T) (1 - P)^(1/T)).

    Args:
        uniforms: (n,) float64, in [0, 1).
        logprob: (n,) log P of the observed tokens, nats; or a number that none is below.
        policy: sampler, `top_k`, temperature, `exclude_original`.
        num_candidates: the most candidates there can be.
        chain_length: (n,) int64, for tokens that are kept if each of several draws keeps its part,
            and whose P is the product of theirs; None: one draw.
    """
    if policy.exclude_original:
        return torch.zeros_like(uniforms, dtype=torch.bool)
    logprob = torch.as_tensor(logprob, dtype=torch.float64)
    share = logprob.exp()
    if policy.temperature > 1 and num_candidates > 1:
        log_others = torch.log(-torch.expm1(logprob))
        spread = (1 - 1 / policy.temperature) * math.log(num_candidates - 1)
        share = torch.sigmoid((logprob - log_others) / policy.temperature - spread)
        if chain_length is not None:  # each of them has a P of at least the product
            share = share**chain_length
    return (logprob > math.log(0.5)) & (uniforms < share)


def draw_tokens(
    policy: EditPolicy, forbidden: Tensor, logits: Tensor, observed: Tensor, uniforms: Tensor
) -> Tensor:
    """Draw replacements of n selected tokens, one or d for each: int64, the shape of `uniforms`.

    Args:
        policy: sampler, temperature, `exclude_original`.
        forbidden: (m,) int64, ids that must not be drawn.
        logits: (n, V), of any floating dtype; changed.
        observed: (n,) int64, the tokens as they are.
        uniforms: (n,) or (n, d) float64, in [0, 1).
    """
    if policy.sampler == "full":
        logits = _allowed(logits, observed, policy, forbidden)
        drawn = _draw_by_chunks(logits, observed, in_columns(uniforms), policy.temperature)
        return drawn.view(uniforms.shape)
    candidates = find_candidates(policy, forbidden, logits, observed)
    return draw_among(candidates, observed, uniforms, policy.temperature)


def find_candidates(
    policy: EditPolicy, forbidden: Tensor, logits: Tensor, observed: Tensor
) -> Candidates:
    """The ids that the sampler admits in place of n tokens; arguments as for `draw_tokens`."""
    if policy.sampler == "full":
        logits = _allowed(logits, observed, policy, forbidden).float()
        ids = torch.arange(logits.shape[-1], device=logits.device)
        return Candidates(ids.expand(logits.shape), logits)
    logits = logits.index_fill_(-1, forbidden, -math.inf)
    if policy.sampler == "top_k":
        return _most_probable(logits, observed, policy)
    return _nuclei(logits.float(), observed, policy)


def draw_among(
    candidates: Candidates, observed: Tensor, uniforms: Tensor, temperature: float
) -> Tensor:
    """Draw from candidates, at least one for each of n tokens; as `draw_tokens`."""
    own = observed.unsqueeze(-1)
    logits = candidates.logits.double() / temperature
    weights = torch.exp(logits - logits.amax(-1, keepdim=True))
    is_own = candidates.ids == own
    own_weight = torch.where(is_own, weights, 0.0).sum(-1, keepdim=True)
    scale = weights.masked_fill_(is_own, 0.0).cumsum(-1)
    # Not the sum of the weights: that would depend on how many columns there are.
    target = _beyond_own(in_columns(uniforms), own_weight, scale[:, -1:])
    other = candidates.ids.gather(-1, _first_above(scale, target))
    return torch.where(target < 0, own, other).view(uniforms.shape)


def _allowed(logits: Tensor, observed: Tensor, policy: EditPolicy, forbidden: Tensor) -> Tensor:
    """The logits with -inf at ids that may not be drawn; changed in place."""
    logits.index_fill_(-1, forbidden, -math.inf)
    if policy.exclude_original:
        write_at(logits, observed, -math.inf)
    return logits


def _draw_by_chunks(
    logits: Tensor, observed: Tensor, uniforms: Tensor, temperature: float
) -> Tensor:
    """Draw from all ids: search the sums of chunks of ids, and then one chunk.

    (n, V) logits, which are changed, and (n, d) uniforms -> (n, d) int64; the observed token where
    no other id has a weight. Weights are in float32: the logits are rounded more than they are.
    """
    if logits.shape[-1] % CHUNK:
        logits = F.pad(logits, (0, -logits.shape[-1] % CHUNK), value=-math.inf)
    own = observed.unsqueeze(-1)
    own_logit = logits.gather(-1, own).float() / temperature
    write_at(logits, observed, -math.inf)
    chunks = logits.view(len(own), -1, CHUNK)
    shifts, sums = [], []
    for weights, some in exp_pieces(logits, temperature):
        shifts.append(some)
        sums.append(weights.view(len(weights), -1, CHUNK).sum(-1))
    shift, of_chunks = torch.cat(shifts), torch.cat(sums).double()
    ends = of_chunks.cumsum(-1)
    own_weight = (own_logit - shift).clamp(max=700).double().exp_()  # finite
    target = _beyond_own(uniforms, own_weight, ends[:, -1:])
    chunk = _first_above(ends, target)
    left = (target - (ends - of_chunks).gather(-1, chunk)).float()
    used = chunk + torch.arange(len(own), device=own.device).unsqueeze(-1) * chunks.shape[1]
    rows = rows_at_once(logits, CHUNK * uniforms.shape[-1] // 2)
    parts = zip(used.split(rows), left.split(rows), strict=True)
    place = [_search_chunks(chunks, shift, *part, temperature) for part in parts]
    return torch.where(target < 0, own, chunk * CHUNK + torch.cat(place))


def _search_chunks(
    chunks: Tensor, shift: Tensor, used: Tensor, target: Tensor, temperature: float
) -> Tensor:
    """Where in its chunk each draw falls: (r, d) numbers of chunks, (r, d) targets -> (r, d) int64.

    Sorted draws of a token use few chunks. To find these, the host would wait for a GPU.
    """
    row, some = None, used.flatten()
    if on_host(used):
        some, row = used.unique_consecutive(return_inverse=True)
    weights = chunks.flatten(0, 1).index_select(0, some).float()
    if temperature != 1:
        weights.div_(temperature)
    steps = weights.sub_(shift.index_select(0, some // chunks.shape[1])).exp_().cumsum(-1)
    if row is None:
        return _first_above(steps.view(*used.shape, CHUNK), target.unsqueeze(-1)).squeeze(-1)
    begin = row * CHUNK
    target = _on_scale(target, steps.take(begin + (CHUNK - 1)))
    place, half = torch.zeros_like(begin), CHUNK // 2
    while half:
        place += half * (steps.take(begin + place + (half - 1)) <= target)
        half //= 2
    return place


def in_columns(uniforms: Tensor) -> Tensor:
    """Numbers for one or d draws of n tokens: (n,) or (n, d) -> (n, d)."""
    return uniforms.view(len(uniforms), *uniforms.shape[1:] or (1,))


def _beyond_own(uniforms: Tensor, own_weight: Tensor, others: Tensor) -> Tensor:
    """How far draws are beyond the observed token: (n, d) float64, negative where they keep it.

    All draws keep it where no other id has a weight.
    """
    target = uniforms * (others + own_weight) - own_weight
    return torch.where(others > 0, target, -1.0)


def _first_above(steps: Tensor, target: Tensor) -> Tensor:
    """Where ascending steps, (..., m), first exceed targets, (..., d): int64 like the targets.

    The result has a weight if any id has one.
    """
    target = _on_scale(target, steps[..., -1:])
    return torch.searchsorted(steps, target, right=True).clamp_(max=steps.shape[-1] - 1)


def _on_scale(target: Tensor, end: Tensor) -> Tensor:
    """Targets in [0, end): rounding can put them below 0, or at the end."""
    return torch.minimum(target.clamp(min=0), end * (1 - torch.finfo(end.dtype).eps / 2))


def _most_probable(logits: Tensor, observed: Tensor, policy: EditPolicy) -> Candidates:
    """The `top_k` most probable ids, without the observed one if it is excluded."""
    V = logits.shape[-1]
    k = min(policy.top_k, V)
    if not policy.exclude_original:
        ids = _top_ids(logits, k)
        return Candidates(ids, logits.gather(-1, ids).float())
    # With the observed token left out of k = 1, the runner-up takes its place.
    ids = _ranked(logits, _top_ids(logits, min(max(k, 2), V)))
    admitted = (torch.arange(ids.shape[-1], device=ids.device) < k).expand(ids.shape)
    return _by_id(logits, ids, _others(ids, admitted, observed))


def _nuclei(logits: Tensor, observed: Tensor, policy: EditPolicy) -> Candidates:
    """The fewest ids that hold at least `top_p`, without the observed one if it is excluded."""
    n, V = logits.shape
    weights = (logits / policy.temperature).softmax(-1)
    if V % CHUNK:
        weights = F.pad(weights, (0, -V % CHUNK))
    enough = policy.top_p * weights.view(n, -1, CHUNK).sum(-1).double().sum(-1, keepdim=True)
    found: list[tuple[Tensor, Candidates]] = []
    rows = torch.arange(n, device=logits.device)
    # To see which nuclei are complete, the host would wait for a GPU.
    num_ids = FIRST_NUCLEUS if on_host(logits) else V
    while len(rows):
        num_ids = min(num_ids, V)
        some = logits[rows]
        ids = _ranked(some, _top_ids(some, num_ids))
        mass = weights[rows].gather(-1, ids).double()
        inside = mass.cumsum(-1) - mass < enough[rows]
        inside[:, 0] = True
        done = ~inside[:, -1]
        if policy.exclude_original:
            inside = _others(ids, inside, observed[rows])
        if num_ids == V:  # all are complete; a mask would make the host wait for a GPU
            found.append((rows, _by_id(some, ids, inside)))
            break
        found.append((rows[done], _by_id(some[done], ids[done], inside[done])))
        rows = rows[~done]
        num_ids *= NUCLEUS_GROWTH
    if len(found) == 1:
        return found[0][1]
    ids = torch.zeros(n, found[-1][1].ids.shape[-1], dtype=torch.int64, device=logits.device)
    values = logits.new_full(ids.shape, -math.inf)
    for rows, candidates in found:
        ids[rows, : candidates.ids.shape[-1]] = candidates.ids
        values[rows, : candidates.ids.shape[-1]] = candidates.logits
    return Candidates(ids, values)


def _others(ids: Tensor, admitted: Tensor, observed: Tensor) -> Tensor:
    """Admit the ids other than the observed one; where none is left, the most probable other id.

    `ids` and `admitted` are (n, m), the most probable first.
    """
    is_other = ids != observed.unsqueeze(-1)
    left = admitted & is_other
    runner_up = is_other & (is_other.cumsum(-1) == 1)
    return left | (runner_up & ~left.any(-1, keepdim=True))


def _by_id(logits: Tensor, ids: Tensor, admitted: Tensor) -> Candidates:
    values = logits.gather(-1, ids).float().masked_fill_(~admitted, -math.inf)
    ids, order = ids.sort(dim=-1)
    return Candidates(ids, values.gather(-1, order))


def _ranked(logits: Tensor, ids: Tensor) -> Tensor:
    """Order ascending ids by their logits, the largest first; of equal ones, the lower id."""
    order = logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True).indices
    return ids.gather(-1, order)


def _top_ids(logits: Tensor, k: int) -> Tensor:
    """The k ids with the largest logits, of equal ones the lower ids: (n, k) int64, ascending."""
    n, V = logits.shape
    if k == V:
        return torch.arange(V, device=logits.device).expand(n, V)
    if 2 * k * TOP_CHUNK > V:
        pieces = logits.split(rows_at_once(logits, V))
        return torch.cat([_top_places(some.float(), k) for some in pieces])
    # They are in the k chunks with the largest maxima, of equal ones the first chunks: each of
    # these chunks has an id that comes before all ids of the other chunks.
    if V % TOP_CHUNK:
        logits = F.pad(logits, (0, -V % TOP_CHUNK), value=-math.inf)
    chunks = logits.view(n, -1, TOP_CHUNK)
    chunk = _top_places(chunks.amax(-1).float(), k)
    place = _top_places(_chunks_at(chunks, chunk).flatten(1).float(), k)
    return chunk.gather(-1, place // TOP_CHUNK) * TOP_CHUNK + place % TOP_CHUNK


def _chunks_at(chunks: Tensor, numbers: Tensor) -> Tensor:
    """Some chunks of each row: (n, C, size) and (n, d) int64 -> (n, d, size)."""
    n, C, size = chunks.shape
    flat = torch.arange(n, device=numbers.device).unsqueeze(-1) * C + numbers
    return chunks.flatten(0, 1).index_select(0, flat.flatten()).view(*numbers.shape, size)


def _top_places(values: Tensor, k: int) -> Tensor:
    """The places of the k largest values of each row, (n, k) int64, ascending.

    Of equal values, which are common in bf16, these are the first: topk takes any of them, so the
    edit would depend on the shape of the batch.
    """
    if not on_host(values):  # the host would wait for the ties of a GPU
        return _by_value_then_place(values).topk(k, dim=-1).indices.sort(-1).values
    # numpy finds the k-th value several times faster than topk finds all k.
    n, m = values.shape
    least = torch.from_numpy(np.partition(values.numpy(), m - k)[:, m - k])
    row, place = (values >= least.unsqueeze(-1)).nonzero().unbind(-1)
    is_least = values[row, place] == least[row]
    rank = is_least.cumsum(0)
    found = row.bincount(minlength=n)
    last = rank[found.cumsum(0) - 1] - (found - k)  # of the equal values of each row
    return place[~is_least | (rank <= last[row])].view(n, k)


def _by_value_then_place(values: Tensor) -> Tensor:
    """Integers in the order of float32 values; of equal values, the first is the largest."""
    # + 0.0 makes -0.0 and 0.0 the same. Negative floats, as bits, go up when they go down.
    bits = (values + 0.0).view(torch.int32)
    bits ^= (bits >> 31).bitwise_and_(0x7FFFFFFF)
    places = torch.arange(values.shape[-1], device=values.device)
    return bits.long().bitwise_left_shift_(32).sub_(places)
