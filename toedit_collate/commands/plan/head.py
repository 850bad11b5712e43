"""Memory of the last step of a model: the trainer's loss, and the tiles of the edit pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...head.projection import MAX_TILE_ELEMENTS, MAX_TILE_ELEMENTS_GPU, MAX_TILE_SHARE
from .config import RunConfig
from .layers import Layers
from .parameters import Parameters

if TYPE_CHECKING:
    from .memory import Precision

# Of TRL 1.16's fused head (`trl.kernels.chunked_logprob`): tokens and ids of a tile.
_TILE_TOKENS, _TILE_IDS = 4096, 32768
_TILES_IN_TORCH = 7  # in float32, where there is no Triton; counted on a CPU
_EDIT_TILES = 2.5  # in float32: a tile, and what is made of it; counted on a CPU


def loss_bytes(
    run: RunConfig, counts: Parameters, layers: Layers, precision: Precision, *, on_gpu: bool
) -> tuple[float, float, float]:
    """What the loss keeps, and what it has in use in its forward and its backward pass."""
    tokens = run.B * run.T
    states = tokens * layers.D * precision.residual
    weight_gradient = 4.0 * counts.head if counts.trains_head else 0.0
    if not run.fused_head:  # logits, the same in float32, their softmax; and its gradient
        logits = float(tokens * layers.V)
        kept = states + logits * (precision.compute + 8)
        return kept, 0.0, logits * 4 + weight_gradient
    rows = min(tokens, _TILE_TOKENS)
    tile = rows * _TILE_IDS * precision.compute
    if not on_gpu:
        tile += _TILES_IN_TORCH * rows * min(layers.V, _TILE_IDS) * 4
    weights = precision.trained if counts.trains_head else precision.weights
    cast = min(layers.V, _TILE_IDS) * layers.D * precision.compute
    forward = tile + (cast if weights != precision.compute else 0)
    # Gradients are summed in float32, and then cast.
    backward = forward + tokens * layers.D * (4 + precision.residual) + weight_gradient
    return float(states), float(forward), float(backward)


def edit_head_bytes(tokens: int, vocab_size: int, *, on_gpu: bool) -> float:
    """Tiles of logits in the edit pass; the (B, T, V) logits are never built."""
    most = MAX_TILE_ELEMENTS_GPU if on_gpu else MAX_TILE_ELEMENTS
    return 4.0 * _EDIT_TILES * min(most, tokens * vocab_size * MAX_TILE_SHARE)
