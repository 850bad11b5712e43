"""The ranks of a run: their number, this rank, and sums over all of them.

All ranks must call a function that is "collective", in the same order.
"""

from __future__ import annotations

import os

import torch


def world_size() -> int:
    """Number of ranks; 1 without torch.distributed."""
    return torch.distributed.get_world_size() if is_distributed() else 1


def is_distributed() -> bool:
    """Whether torch.distributed is initialized, with any number of ranks."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    """The number of this rank, from 0."""
    if world_size() > 1:
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


def all_reduce(values: list[float], operation: str = "sum") -> list[float]:
    """Reduce numbers over all ranks by "sum", "min" or "max"; collective."""
    if world_size() == 1:
        return values
    from accelerate import PartialState

    tensor = torch.tensor(values, dtype=torch.float64, device=PartialState().device)
    torch.distributed.all_reduce(tensor, getattr(torch.distributed.ReduceOp, operation.upper()))
    return tensor.tolist()


def barrier() -> None:
    """Wait for all ranks; collective."""
    all_reduce([0.0])
