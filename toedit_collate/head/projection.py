"""The vocabulary projection, in tiles: logits of some ids, without the (B, T, V) logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# A tile of logits holds at most this many elements (fp32: 16 MiB, about the cache of a CPU, and
# 64 MiB), and at most this share of the full (tokens, vocabulary) matrix, so that small batches
# are tiled too.
MAX_TILE_ELEMENTS = 2**22
MAX_TILE_ELEMENTS_GPU = 2**24
MAX_TILE_SHARE = 1 / 22


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
            raw = F.linear(self.ready(hidden), self.weight[start:stop], bias)
        else:
            assert self.module is not None
            raw = self.module(hidden)[:, start:stop]
        return self._finish(raw)

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Logits of m ids, the same for all rows, by `weight`: (n, D), (m,) -> (n, m) float32."""
        assert self.weight is not None
        bias = None if self.bias is None else self.bias[ids]
        return self._finish(F.linear(self.ready(hidden), self.weight[ids], bias))

    def observed_logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The logit of one id per row, by `weight`: (n, D) states, (n,) ids -> (n,) float32."""
        assert self.weight is not None
        hidden = self.ready(hidden)
        # fp32 sums, rounded once to the model's dtype: what a matrix product does, too. Without
        # the same rounding, an observed logit could not be compared with its competitors'.
        rows = max(1, MAX_TILE_ELEMENTS // hidden.shape[-1])
        raw = torch.cat(
            [
                self.weight[i].float().mul_(h).sum(-1)
                for h, i in zip(hidden.split(rows), ids.split(rows), strict=True)
            ]
        )
        if self.bias is not None:
            raw = raw + self.bias[ids].float()
        return self._finish(raw.to(hidden.dtype))

    def ready(self, hidden: Tensor) -> Tensor:
        """Hidden states on the device and in the dtype of `weight`."""
        if self.weight is None:
            return hidden
        return hidden.to(device=self.weight.device, dtype=self.weight.dtype)

    def _finish(self, raw: Tensor) -> Tensor:
        if self.scale != 1.0:
            raw = raw * self.scale
        if self.softcap is not None:
            raw = torch.tanh(raw / self.softcap) * self.softcap
        return raw.float()


def tile_elements(num_rows: int, vocab_size: int, device: torch.device | None = None) -> int:
    """The largest number of logits to hold at once for a batch of `num_rows` positions."""
    on_gpu = device is not None and device.type == "cuda"
    most = MAX_TILE_ELEMENTS_GPU if on_gpu else MAX_TILE_ELEMENTS
    return max(1, min(most, int(num_rows * vocab_size * MAX_TILE_SHARE)))


def row_tiles(head: Head, budget: int, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of n rows into pieces that may be projected on to the whole vocabulary."""
    rows = max(1, budget // head.vocab_size)
    yield from zip(*(column.split(rows) for column in columns), strict=True)
