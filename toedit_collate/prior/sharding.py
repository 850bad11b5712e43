"""Models whose weights are spread over ranks: FSDP2 (DTensor) and DeepSpeed ZeRO-3.

All ranks must call a function that is "collective", in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from ..distributed import all_reduce, is_distributed
from .families import unwrap_model

T = TypeVar("T")


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 keeps only a part of the weights on each rank."""
    # `is_distributed` first: this runs for each batch.
    return is_distributed() and any(_is_dtensor(p) for p in model.parameters())


def is_zero3(model: nn.Module) -> bool:
    """Whether DeepSpeed ZeRO-3 keeps only a part of the weights on each rank."""
    return any(hasattr(p, "ds_id") for p in model.parameters())


def check_not_zero3(model: nn.Module) -> None:
    """Raise where DeepSpeed ZeRO-3 spreads a prior's weights over ranks.

    A second forward pass through a model that ZeRO-3 trains confuses the order in which it fetches
    weights, and training fails in the backward pass.
    """
    if is_zero3(model):
        raise ValueError(
            "the prior's weights are partitioned by DeepSpeed ZeRO-3; load a separate prior with "
            "Prior.from_pretrained (each rank holds it whole), or train with ZeRO-2 or FSDP2"
        )


@contextmanager
def without_zero3() -> Iterator[None]:
    """Load a model whole, even after TrainingArguments with DeepSpeed ZeRO-3 were made."""
    from transformers.integrations import deepspeed

    reference = getattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    config = None if reference is None else reference()
    if config is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(config)


def has_fsdp1(model: nn.Module) -> bool:
    """Whether FSDP version 1 has wrapped parts of the model."""
    return any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules())


def full_tensor(tensor: Tensor) -> Tensor:
    """A whole parameter: itself, or gathered from all ranks (collective)."""
    if _is_dtensor(tensor):
        return tensor.full_tensor()  # type: ignore[attr-defined]
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def storage_of(tensor: Tensor) -> int:
    """Identifies tied weights: where in memory a parameter, or its local part, is."""
    local = tensor.to_local() if _is_dtensor(tensor) else tensor  # type: ignore[attr-defined]
    return local.data_ptr() or id(tensor)


def copy_into(target: Tensor, whole: Tensor) -> None:
    """Write a whole tensor into a parameter, which may be sharded (collective)."""
    if _is_dtensor(target):
        from torch.distributed.tensor import distribute_tensor

        whole = whole.to(device=target.device, dtype=target.dtype)
        whole = distribute_tensor(whole, target.device_mesh, target.placements)  # type: ignore[attr-defined]
    target.copy_(whole)


def _fsdp_root(model: nn.Module) -> Any:
    """The module with the embeddings that FSDP2 gathers when it is called; None: not sharded."""
    if not is_distributed():
        return None
    embeddings = unwrap_model(model).get_input_embeddings()
    wrapped = (m for m in model.modules() if hasattr(m, "unshard") and hasattr(m, "reshard"))
    return next((m for m in wrapped if any(part is embeddings for part in m.modules())), None)


class Rendezvous:
    """Brings the ranks together for one batch; does nothing unless weights are sharded."""

    def __init__(self) -> None:
        self._is_running = False

    def run(self, model: nn.Module, function: Callable[[], T]) -> T:
        """Call a function that uses parts of a model, gathered first if FSDP2 has sharded it.

        FSDP2 gathers the embeddings and the head only while its outermost module is called. So the
        function replaces the forward pass of that module for one call.
        """
        root = None if self._is_running else _fsdp_root(model)
        if root is None:
            return function()
        result: list[T] = []

        def instead(*args: Any, **kwargs: Any) -> None:
            del root.forward
            result.append(function())

        root.forward = instead
        self._is_running = True
        try:
            root()
        finally:
            self._is_running = False
            root.__dict__.pop("forward", None)
            root.reshard()  # the optimizer updates the shards, not the gathered weights
        return result[0]

    def idle_passes(self, num_passes: int) -> int:
        """How many more passes than this rank others make, which it must join (collective)."""
        return int(all_reduce([num_passes], "max")[0]) - num_passes


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor") and hasattr(tensor, "placements")
