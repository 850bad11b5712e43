"""Hidden states that make a model of random weights as certain of its tokens as a real prior.

Random weights never give a token 0.99. So the bench keeps their trunk, whose cost does not depend
on its weights, and puts prepared states in place of what it computes: with them, the probabilities
of the observed tokens follow the paper's Table 8, and their competitors are as uneven as in text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...prior.families import find_trunk, unwrap_model
from ...prior.prior import Prior

# Table 8 of arXiv:2412.14689 in per cent of all tokens, by the probability of the token. The
# shares of 0.0-0.1 and 0.9-1.0 (27.1) are the paper's, and about 12 % at 0.99 and above; the eight
# between are ours: a shallow U that adds up to the rest.
TABLE_8 = (
    (34.7, 0.0, 0.1),
    (8.5, 0.1, 0.2),
    (5.5, 0.2, 0.3),
    (4.5, 0.3, 0.4),
    (4.0, 0.4, 0.5),
    (3.8, 0.5, 0.6),
    (3.7, 0.6, 0.7),
    (3.8, 0.7, 0.8),
    (4.4, 0.8, 0.9),
    (15.1, 0.9, 0.99),
    (12.0, 0.99, 1.0),
)
# At both ends P and 1 - P are spread evenly over their orders of magnitude, down to these. The
# second makes 0.4 % the mean of 1 - P where P >= 0.99, about what a real small prior has.
_LEAST = 1e-4
_LEAST_LEFT = 1e-3
# Standard deviation of the competitors' logits from one position to the next. Zipf's law alone
# would make all positions alike, and early reject too easy. Where P is between 0.9 and 0.99, this
# is how the competitors' mass was spread for a real prior of 10M weights with 8192 ids on technical
# prose, and in brackets how Zipf's law with this spreads it: on the likeliest one, 0.27 at the
# median (0.21); on the 256 likeliest, 0.43 at the median (0.45), and from 0.05 to 0.96 (0.20 to
# 0.84) in nine cases of ten.
_UNEVENNESS = 3.0
# Elements of a tile of logits (fp32: 32 MiB; four of them exist at once).
_TILE_ELEMENTS = 2**23
_NEWTON_STEPS = 5  # three reach the precision of float32


def table_8_targets(num: int, generator: torch.Generator) -> Tensor:
    """Probabilities of `num` tokens as in Table 8, in random order: (num,) float64 on the CPU."""
    shares = torch.tensor([row[0] for row in TABLE_8], dtype=torch.float64) / 100
    ends = shares.cumsum(0)
    # One in each of `num` equal strata, so that the shares are Table 8's for small batches, too.
    place = (torch.randperm(num, generator=generator).double() + 0.5) / num
    row = torch.searchsorted(ends, place).clamp(max=len(TABLE_8) - 1)
    inside = ((place - (ends - shares)[row]) / shares[row]).clamp(0, 1)
    low, high = (torch.tensor([r[i] for r in TABLE_8], dtype=torch.float64)[row] for i in (1, 2))
    even = low + inside * (high - low)
    rare = _LEAST * (0.1 / _LEAST) ** inside
    left = torch.where(high == 1, _LEAST_LEFT, 1 - high).clamp(min=_LEAST_LEFT)
    sure = 1 - (1 - low) * (left / (1 - low)) ** inside
    return torch.where(low == 0, rare, torch.where(low >= 0.9, sure, even))


def zipf_ids(B: int, T: int, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Tokens as frequent as words are, by their ids: (B, T) int64."""
    weights = 1 / torch.arange(1, vocab_size + 1, dtype=torch.float64)
    return torch.multinomial(weights, B * T, replacement=True, generator=generator).view(B, T)


@torch.no_grad()
def shape_head(weight: Tensor) -> Tensor:
    """Give the rows of a vocabulary projection a common direction, in place: (V, D).

    Along the direction g that is returned, (D,) float32, row j has -log(j + 1), up to a factor: a
    state with the right component along g alone gives id j a probability in proportion to
    1 / (j + 1), Zipf's law over the ids, which tokenizers number by frequency.
    """
    V, D = weight.shape
    generator = torch.Generator().manual_seed(D)
    g = torch.randn(D, generator=generator).to(weight.device)
    g /= g.norm()
    along = -torch.log(torch.arange(1, V + 1, device=weight.device).float())
    spread = weight[:4096].float().std()
    size = spread * math.sqrt(D) / 4  # entries of the size of the others
    for rows, a in zip(weight.split(4096), along.split(4096), strict=True):
        free = rows.to(torch.float32, copy=True)
        # A row of zeros (that of a padding id, where head and embeddings are tied) would be left
        # with g alone, and no state could then tell its id from its neighbours'.
        blank = (~free.any(dim=-1)).nonzero().squeeze(-1)
        free[blank] = spread * torch.randn(len(blank), D, generator=generator).to(weight.device)
        free -= (free @ g).unsqueeze(-1) * g
        rows.copy_(free + size * a.unsqueeze(-1) * g)
    return g


@torch.no_grad()
def calibrated_states(
    weight: Tensor, g: Tensor, ids: Tensor, targets: Tensor, generator: torch.Generator
) -> Tensor:
    """Hidden states a * unit(w_y) + b * g + c * e that predict the ids y as probably as is wanted.

    b makes the competitors follow Zipf's law, and c, with a random direction e, makes them differ
    from one position to the next. a is solved for: log(P / (1 - P)) is a concave and growing
    function of a, so Newton's steps find it from anywhere.

    Args:
        weight: (V, D), from `shape_head`.
        g: (D,) float32.
        ids: (n,) int64, the tokens to be predicted.
        targets: (n,) float64, their probabilities.
        generator: of the random directions, on the CPU.

    Returns:
        (n, D), in the dtype of `weight`.
    """
    V, D = weight.shape
    device = weight.device
    along = torch.cat([rows.float() @ g for rows in weight.split(4096)])
    b = math.log(V) / float(along[0] - along[-1])
    sample = weight[:4096].float()
    across = sample - (sample @ g).unsqueeze(-1) * g
    c = _UNEVENNESS / float(across.square().mean().sqrt())
    wanted = torch.logit(targets).float().to(device)
    rows_at_once = max(1, _TILE_ELEMENTS // V)
    pieces = []
    for y, logit in zip(ids.split(rows_at_once), wanted.split(rows_at_once), strict=True):
        own = y.to(device).unsqueeze(-1)
        unit = _across(weight[own.squeeze(-1)].float(), g)
        e = _across(torch.randn(len(y), D, generator=generator).to(device), g)
        rest = b * g + c * e
        slopes, base = (
            torch.cat([h @ rows.float().T for rows in weight.split(4096)], dim=-1)
            for h in (unit, rest)
        )
        a = _solve(slopes, base, own, logit)
        pieces.append((a * unit + rest).to(weight.dtype))
    return torch.cat(pieces)


def _across(vectors: Tensor, g: Tensor) -> Tensor:
    """Unit vectors without a component along g: (n, D)."""
    vectors = vectors - (vectors @ g).unsqueeze(-1) * g
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _solve(slopes: Tensor, base: Tensor, own: Tensor, wanted: Tensor) -> Tensor:
    """The a with log(P / (1 - P)) = `wanted` for logits a * slopes + base: (n, 1)."""
    a = torch.zeros_like(own, dtype=torch.float32)
    for _ in range(_NEWTON_STEPS):
        logits = a * slopes + base
        own_logit = logits.gather(-1, own)
        logits.scatter_(-1, own, -math.inf)
        others = logits.logsumexp(-1, keepdim=True)
        share = logits.sub_(others).exp_()  # of each competitor among them
        slope = slopes.gather(-1, own) - (share * slopes).sum(-1, keepdim=True)
        a = a + (wanted.unsqueeze(-1) - (own_logit - others)) / slope
    return a


@contextmanager
def states_replaced(prior: Prior, states: Tensor | None) -> Iterator[None]:
    """While it lasts, the trunk returns prepared states, after computing its own.

    Only without gradients: a trainee that shares its trunk with the prior trains on real ones.

    Args:
        prior: its trunk gets a forward hook.
        states: (B, T, D), for a batch without padding, whose rows come in order; None: change
            nothing.
    """
    if states is None:
        yield
        return
    prepared = states

    # Not compiled with the trunk: the compiler would leave out what is replaced, that is all of it.
    @torch.compiler.disable
    def replace(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if torch.is_grad_enabled():
            return None
        rows = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if rows.numel() != prepared.shape[0] * prepared.shape[1]:
            raise RuntimeError(
                f"the trunk was called with {tuple(rows.shape)} tokens, and states are prepared "
                f"for {tuple(prepared.shape[:2])}: the bench does not know this layout"
            )
        # One document to a row, or all of them in one row.
        output.last_hidden_state = prepared.view(*rows.shape, -1)
        return output

    trunk = find_trunk(unwrap_model(prior.model))
    handle = trunk.register_forward_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
