"""The vocabulary projection, in tiles: log P of observed tokens without the (B, T, V) logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# A tile of logits holds at most this many elements (fp32: 16 MiB), and at most this share of the
# full (tokens, vocabulary) matrix, so that small batches are tiled too.
MAX_TILE_ELEMENTS = 2**22
MAX_TILE_SHARE = 1 / 22
# Ids in the first tile. Tokenizers number frequent tokens first, so a small tile already holds
# enough probability to reject most of the positions.
FIRST_TILE_IDS = 512


@dataclass(frozen=True)
class Head:
    """The last step of a language model, from hidden states to logits.

    logits = cap * tanh(scale * (W h + b) / cap), where a model has a scale and a cap; computed in
    the model's own dtype, as the model does, and then taken to float32.

    Attributes:
        weight: (V, D), or None for a projection that only its module can compute (a quantised one).
        bias: (V,) or None.
        module: computes W h + b for the whole vocabulary; used where `weight` is None.
        vocab_size: V, padding of the vocabulary included.
        scale: factor on the logits.
        softcap: cap of the logits (Gemma-2), or None.
    """

    weight: Tensor | None
    bias: Tensor | None
    module: Callable[[Tensor], Tensor] | None
    vocab_size: int
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Logits of the ids in [start, stop): (n, D) hidden states -> (n, stop - start) float32."""
        stop = self.vocab_size if stop is None else stop
        if self.weight is not None:
            bias = None if self.bias is None else self.bias[start:stop]
            raw = F.linear(self._ready(hidden), self.weight[start:stop], bias)
        else:
            assert self.module is not None
            raw = self.module(hidden)[:, start:stop]
        return self._finish(raw)

    def observed_logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The logit of one id per row, by `weight`: (n, D) states, (n,) ids -> (n,) float32."""
        assert self.weight is not None
        hidden = self._ready(hidden)
        # fp32 sums, rounded once to the model's dtype: what a matrix product does, too. Without
        # the same rounding, an observed logit could not be compared with its competitors'.
        raw = torch.cat(
            [
                (h.float() * self.weight[i].float()).sum(-1)
                for h, i in zip(hidden.split(4096), ids.split(4096), strict=True)
            ]
        )
        if self.bias is not None:
            raw = raw + self.bias[ids].float()
        return self._finish(raw.to(hidden.dtype))

    def rows_per_tile(self, num_rows: int) -> int:
        """How many rows may be projected at once on to the whole vocabulary."""
        return max(1, tile_elements(num_rows, self.vocab_size) // self.vocab_size)

    def _ready(self, hidden: Tensor) -> Tensor:
        assert self.weight is not None
        return hidden.to(device=self.weight.device, dtype=self.weight.dtype)

    def _finish(self, raw: Tensor) -> Tensor:
        if self.scale != 1.0:
            raw = raw * self.scale
        if self.softcap is not None:
            raw = torch.tanh(raw / self.softcap) * self.softcap
        return raw.float()


def tile_elements(num_rows: int, vocab_size: int) -> int:
    """The largest number of logits to hold at once for `num_rows` positions."""
    return max(1, min(MAX_TILE_ELEMENTS, int(num_rows * vocab_size * MAX_TILE_SHARE)))


def observed_logprob(
    head: Head, hidden: Tensor, ids: Tensor, *, lowest_cut: float = -math.inf
) -> Tensor:
    """Log P of one id per row, exact wherever it can matter.

    Summing over a part of the vocabulary bounds P from above. So the tiles of the vocabulary are
    visited in turn, and a row whose bound has fallen under `lowest_cut` is left out of the rest:
    early reject. With the default, every row is visited to the end.

    Args:
        head: of the prior; V ids.
        hidden: (n, D), the hidden states that predict `ids`.
        ids: (n,) int64, in [0, V).
        lowest_cut: nats. No decision turns under it (`EditPolicy.lowest_cut`).

    Returns:
        (n,) float32, nats: log P where that is >= `lowest_cut`; elsewhere an upper bound of log P
        that lies under `lowest_cut`. NaN where the prior's numbers are NaN.
    """
    n = len(ids)
    if n == 0:
        return hidden.new_zeros(0, dtype=torch.float32)
    if head.weight is None:
        return _observed_logprob_opaque(head, hidden, ids)
    budget = tile_elements(n, head.vocab_size)
    first_ids = min(FIRST_TILE_IDS, head.vocab_size)
    logprob = [
        _observed_logprob_rows(head, h, i, lowest_cut, first_ids, budget)
        for h, i in zip(
            hidden.split(max(1, budget // first_ids)),
            ids.split(max(1, budget // first_ids)),
            strict=True,
        )
    ]
    return torch.cat(logprob)


def _observed_logprob_rows(
    head: Head, hidden: Tensor, ids: Tensor, lowest_cut: float, first_ids: int, budget: int
) -> Tensor:
    observed = head.observed_logits(hidden, ids)
    # log-sum-exp over the *other* ids that were visited; the observed one joins at the end.
    others = torch.full_like(observed, -math.inf)
    bound = torch.zeros_like(observed)
    still_open = torch.arange(len(ids), device=ids.device)
    start, stop = 0, min(first_ids, budget, head.vocab_size)
    while True:
        rows_are_all = len(still_open) == len(ids)
        tile_hidden = hidden if rows_are_all else hidden[still_open]
        tile_ids = ids if rows_are_all else ids[still_open]
        tile = head.logits(tile_hidden, start, stop)
        in_tile = (tile_ids >= start) & (tile_ids < stop)
        column = (tile_ids - start).clamp(0, stop - start - 1).unsqueeze(-1)
        own = tile.gather(-1, column).masked_fill_(in_tile.unsqueeze(-1), -math.inf)
        tile.scatter_(-1, column, own)
        others[still_open] = torch.logaddexp(others[still_open], tile.logsumexp(-1))
        # log P = -log(1 + sum_others / e^observed): keeps its precision where P is close to 1.
        bound[still_open] = -F.softplus(others[still_open] - observed[still_open])
        if stop == head.vocab_size:
            return bound
        # ~(<) and not (>=), so that NaN stays in and comes out as NaN.
        still_open = still_open[~(bound[still_open] < lowest_cut)]
        if len(still_open) == 0:
            return bound
        start = stop
        stop = min(head.vocab_size, start + max(1, budget // len(still_open)))


def _observed_logprob_opaque(head: Head, hidden: Tensor, ids: Tensor) -> Tensor:
    logprob = [
        head.logits(h).log_softmax(-1).gather(-1, i.unsqueeze(-1)).squeeze(-1)
        for h, i in row_tiles(head, hidden, ids)
    ]
    return torch.cat(logprob)


def row_tiles(head: Head, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of n rows into pieces that may be projected on to the whole vocabulary."""
    rows = head.rows_per_tile(len(columns[0]))
    yield from zip(*(column.split(rows) for column in columns), strict=True)
