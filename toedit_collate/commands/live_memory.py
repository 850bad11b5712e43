"""Counts the bytes of the tensors that are alive at once."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while the mode is on and are still alive.

    Tensors that share memory count once. Tensors from before the mode do not count. Memory that an
    operation allocates and frees inside itself is not seen. Works on a CPU and on the meta device.

    Attributes:
        live: bytes alive now.
        peak: the most bytes that were alive at once.

    Example:
        >>> import torch
        >>> with LiveMemory() as memory:
        ...     _ = torch.zeros(1024).float().sum()
        >>> memory.peak
        4100
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def add(self, num_bytes: float) -> None:
        """Count bytes that no tensor stands for, or take them off again."""
        self.live += int(num_bytes)
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._follow(storage, 0)  # an argument that is new here was made before the mode
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._follow(storage, storage.nbytes())
        return result

    def _follow(self, storage: Any, num_bytes: int) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.add(num_bytes)
        weakref.finalize(storage, self._forget, key, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live -= num_bytes


def _storages(tree: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
