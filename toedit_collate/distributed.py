"""The ranks of a run: how many there are, which one this is, and what all of them add up to.

Everything here that says "collective" must happen on all ranks, in the same order.
"""

from __future__ import annotations

import os

import torch


def world_size() -> int:
    """Number of ranks; 1 without torch.distributed."""
    return torch.distributed.get_world_size() if is_distributed() else 1


def is_distributed() -> bool:
    """Whether torch.distributed runs, with however many ranks."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    """Number of this rank, from 0."""
    if world_size() > 1:
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


def all_reduce(values: list[float], operation: str = "sum") -> list[float]:
    """Sums or extremes ("min", "max") of numbers over all ranks; collective."""
    if world_size() == 1:
        return values
    from accelerate import PartialState

    tensor = torch.tensor(values, dtype=torch.float64, device=PartialState().device)
    kind = {"sum": "SUM", "min": "MIN", "max": "MAX"}[operation]
    torch.distributed.all_reduce(tensor, getattr(torch.distributed.ReduceOp, kind))
    return tensor.tolist()


def barrier() -> None:
    """Wait until all ranks are here; collective."""
    all_reduce([0.0])
