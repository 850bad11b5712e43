"""The vocabulary projection in tiles: logits of some ids, without the (B, T, V) logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..transfer import on_host

# A tile of logits has at most this many elements (fp32: 16 MiB and 64 MiB). On a CPU it is also at
# most this share of the full (tokens, vocabulary) matrix, so that small batches need little memory.
# On a GPU, each tile costs time for its launches.
MAX_TILE_ELEMENTS = 2**22
MAX_TILE_ELEMENTS_GPU = 2**24
MAX_TILE_SHARE = 1 / 22
# A product with the whole head reads all of it, so it is made for many rows at once. On a CPU, the
# C library returns blocks of 32 MiB and more to the system after each use, and new pages are slow.
MAX_BLOCK_BYTES = 30 * 2**20
MAX_BLOCK_BYTES_GPU = 64 * 2**20
# Libraries use other code, with other rounding, for few rows. With at least so many rows, the
# float32 logits of a row do not depend on the other rows (seen with MKL: its limit is 14 or 16).
MIN_BLOCK_ROWS = 16
# Logits to process at once after a product, so that they stay in the cache of a CPU core.
PIECE_ELEMENTS = 2**18


@dataclass(frozen=True)
class Head:
    """The last step of a language model, from hidden states to logits.

    logits = cap * tanh(scale * (W h + b) / cap), where a model has a scale and a cap; computed in
    the model's own dtype, and then converted to float32.
    """

    weight: Tensor  # (V, D)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0  # factor of the logits
    softcap: float | None = None  # cap of the logits (Gemma-2), or None

    @property
    def vocab_size(self) -> int:
        """V, padding of the vocabulary included."""
        return self.weight.shape[0]

    def logits(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Logits of the ids in [start, stop): (n, D) hidden states -> (n, stop - start) float32."""
        return self.project(hidden, start, stop).float()

    def project(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """As `logits`, in the dtype of the model."""
        bias = None if self.bias is None else self.bias[start:stop]
        return self._finish(F.linear(self.ready(hidden), self.weight[start:stop], bias))

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Logits of m ids, the same for all rows: (n, D), (m,) -> (n, m) float32."""
        bias = None if self.bias is None else self.bias[ids]
        return self._finish(F.linear(self.ready(hidden), self.weight[ids], bias)).float()

    def observed_logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The logit of one id per row: (n, D) states, (n,) ids -> (n,) float32."""
        hidden = self.ready(hidden)
        # fp32 sums, rounded once to the model's dtype, as in a matrix product. Without the same
        # rounding, an observed logit could not be compared with its competitors'.
        rows = max(1, MAX_TILE_ELEMENTS // hidden.shape[-1])
        pieces = zip(hidden.split(rows), ids.split(rows), strict=True)
        raw = torch.cat([self.weight[i].float().mul_(h).sum(-1) for h, i in pieces])
        if self.bias is not None:
            raw = raw + self.bias[ids].float()
        return self._finish(raw.to(hidden.dtype)).float()

    def ready(self, hidden: Tensor) -> Tensor:
        """Hidden states on the device and in the dtype of `weight`."""
        return hidden.to(device=self.weight.device, dtype=self.weight.dtype)

    def _finish(self, raw: Tensor) -> Tensor:
        if self.scale != 1.0:
            raw = raw * self.scale
        if self.softcap is not None:
            raw = torch.tanh(raw / self.softcap) * self.softcap
        return raw


def tile_elements(num_rows: int, vocab_size: int, device: torch.device) -> int:
    """The number of logits to hold at once for a batch of `num_rows` positions."""
    if device.type == "cuda":
        return MAX_TILE_ELEMENTS_GPU
    return max(1, min(MAX_TILE_ELEMENTS, int(num_rows * vocab_size * MAX_TILE_SHARE)))


def rows_at_once(on: Tensor, width: int, *, many: bool = False) -> int:
    """How many rows of `width` numbers to process at once, on the device of a tensor.

    On a CPU, the numbers stay in the cache of a core, unless `many`.
    """
    most = MAX_TILE_ELEMENTS if many else PIECE_ELEMENTS
    return max(1, (most if on_host(on) else MAX_TILE_ELEMENTS_GPU) // width)


def write_at(logits: Tensor, ids: Tensor, values: Tensor | float) -> None:
    """Write a value at one id per row, (n,) int64; the logits are changed.

    On a CPU, scatter_ would convert all 16-bit logits to float32 and back.
    """
    logits[torch.arange(len(ids), device=ids.device), ids] = values


def exp_pieces(logits: Tensor, temperature: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
    """e^(logits / temperature - shift), a few rows at a time, with the shift of each row.

    Yields:
        (r, V) float32, in a buffer that is used again; (r, 1) float32.
    """
    rows = rows_at_once(logits, logits.shape[-1])
    if not on_host(logits):  # on a GPU, softmax reads 16-bit logits and writes float32 at once
        for some in logits.split(rows):
            scaled = some if temperature == 1 else some.float() / temperature
            weights = scaled.softmax(-1, dtype=torch.float32)
            most, place = scaled.max(-1, keepdim=True)
            yield weights, most.float() - weights.gather(-1, place).log_()
        return
    buffer = logits.new_empty(min(rows, len(logits)), logits.shape[-1], dtype=torch.float32)
    for some in logits.split(rows):
        weights = buffer[: len(some)].copy_(some)
        if temperature != 1:
            weights.div_(temperature)
        # Not -inf, for a row of -inf.
        shift = weights.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
        yield weights.sub_(shift).exp_(), shift


def project_rows(
    head: Head, hidden: Tensor, *columns: Tensor, most: int | None = None, many: bool = False
) -> Iterator[tuple[Tensor, ...]]:
    """Project rows onto the whole vocabulary, many at once, and yield a few at a time.

    `hidden` is (n, D); `columns` have n rows each. At most `most` logits are in memory at once; by
    default, `MAX_BLOCK_BYTES` of them. `many` is as in `rows_at_once`.

    Yields:
        The logits of the next rows, (r, V) in the dtype of the model, which may be overwritten; and
        these rows of each column.
    """
    if most is None:
        in_bytes = MAX_BLOCK_BYTES if on_host(hidden) else MAX_BLOCK_BYTES_GPU
        most = in_bytes // head.weight.element_size()
    block = max(1, most // head.vocab_size)
    piece = rows_at_once(hidden, head.vocab_size, many=many)
    for states, *rest in zip(*(x.split(block) for x in (hidden, *columns)), strict=True):
        missing = max(0, MIN_BLOCK_ROWS - len(states))
        logits = head.project(F.pad(states, (0, 0, 0, missing)))[: len(states)]
        yield from zip(*(x.split(piece) for x in (logits, *rest)), strict=True)
        del logits  # so that the next block takes its memory
