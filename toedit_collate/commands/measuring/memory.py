"""Peak memory: of tensors on a CPU, and by the allocator's own count on a GPU."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .machine import synchronize


class StorageTracker(TorchDispatchMode):
    """Counts the bytes of tensors on the CPU that are alive at once, made while it is on.

    Tensors that share memory count once, those from before not at all. What an operation takes
    and gives back inside itself is not seen.

    Attributes:
        live: bytes now.
        peak: the most bytes at once.

    Example:
        >>> with StorageTracker() as tracker:
        ...     _ = torch.zeros(1024).float().sum()
        >>> tracker.peak
        4100
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._follow(storage, 0)  # if it is not one of ours, it was there before
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._follow(storage, storage.nbytes())
        return result

    def _follow(self, storage: Any, num_bytes: int) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live -= num_bytes


def _storages(tree: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most memory that a function had in use at once, beyond what was in use before it."""
    gc.collect()
    if device.type != "cuda":
        with StorageTracker() as tracker:
            function()
        return tracker.peak
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
