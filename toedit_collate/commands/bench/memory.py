"""The part `memory`: how much more memory the edit takes at its peak than the bare trunk."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...policy import EditPolicy
from ...tools.measuring.inputs import Inputs
from ...tools.measuring.machine import is_out_of_memory, synchronize
from .passes import (
    OURS,
    PLAIN,
    TRUNK,
    WHOLE_HEAD,
    bare_trunk,
    make_collator,
    ours,
    plain,
    plain_fits,
    plain_left_out,
)
from .switches import no_early_reject
from .table import Column, Row, Section

_MIB = 2**20


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


def measure_memory(inputs: Inputs, policy: EditPolicy) -> Section:
    """Compare the peaks of one batch."""
    collator = make_collator(inputs, policy)

    def whole_head() -> object:
        with no_early_reject():
            return ours(inputs, collator, 0)

    functions: dict[str, Callable[[], object]] = {
        TRUNK: lambda: bare_trunk(inputs, 0),
        PLAIN: lambda: plain(inputs, policy, 0),
        OURS: lambda: ours(inputs, collator, 0),
        WHOLE_HEAD: whole_head,
    }
    if not plain_fits(inputs):
        del functions[PLAIN]
    section = Section(
        "memory",
        f"Peak memory for a batch of {inputs.size}, beyond weights",
        [Column("MiB", "{peak_mib:,.1f}"), Column("more than the trunk", "{extra_mib:+,.1f}")],
        notes=[_how(inputs.device)],
    )
    bare = 0.0
    with inputs.in_place():
        ours(inputs, collator, 0)  # what is kept from the first edit on is no peak
        for name, function in functions.items():
            try:
                peak = peak_bytes(function, inputs.device) / _MIB
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                section.rows.append(Row(name, text="out of memory"))
                continue
            if name == TRUNK:
                bare = peak
                section.rows.append(Row(name, {"peak_mib": peak}))
                continue
            target = inputs.setting.target("memory ours") if name == OURS else ""
            section.rows.append(Row(name, {"peak_mib": peak, "extra_mib": peak - bare}, target))
    if PLAIN not in functions:
        section.rows.append(plain_left_out(inputs))
    return section


def _how(device: torch.device) -> str:
    if device.type == "cuda":
        return "By torch.cuda.max_memory_allocated."
    return (
        "All tensors alive at once; what an operation takes and gives back inside itself is not "
        "seen."
    )
