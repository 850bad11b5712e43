"""Where FSDP2 has spread a prior's weights over ranks, all of them must score at the same time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from ..distributed import all_reduce
from .sharding import run_inside

T = TypeVar("T")


class Rendezvous:
    """Brings the ranks together for one batch; without sharded weights it does nothing."""

    def __init__(self) -> None:
        self._is_running = False

    def run(self, model: nn.Module, function: Callable[[], T]) -> T:
        """Call a function that uses parts of a model, gathered first if FSDP2 has sharded it."""
        if self._is_running:
            return function()
        self._is_running = True
        try:
            return run_inside(model, function)
        finally:
            self._is_running = False

    def idle_passes(self, num_passes: int) -> int:
        """How many passes other ranks make beyond ours, in which we must take part (collective)."""
        return int(all_reduce([num_passes], "max")[0]) - num_passes
