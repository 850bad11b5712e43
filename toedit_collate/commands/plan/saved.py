"""Count what autograd saves for the backward pass, in memory of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def saved_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes of distinct storages that a forward pass keeps, the model's own left out.

    Args:
        model: its parameters and buffers do not count.
        forward: runs it; what checkpointing computes again is not seen.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> x = torch.zeros(5, 3)
        >>> saved_bytes(model, lambda: model(x))  # its input: 15 elements of 4 bytes
        60
    """
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())
