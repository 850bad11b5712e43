"""Models whose weights are spread over ranks: FSDP2 (DTensor), and DeepSpeed ZeRO-3.

Everything here that says "collective" must happen on all ranks, in the same order.
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
    """Whether FSDP2 keeps a part of the weights only on each rank."""
    # Asked for each batch, so not of all weights where it can't be.
    return is_distributed() and any(_is_dtensor(p) for p in model.parameters())


def class_name(model: nn.Module) -> str:
    """The name of a model's class, without the one that FSDP2 derives from it."""
    return next(c.__name__ for c in type(model).__mro__ if not c.__name__.startswith("FSDP"))


def is_zero3(model: nn.Module) -> bool:
    """Whether DeepSpeed ZeRO-3 keeps a part of the weights only on each rank."""
    return any(hasattr(p, "ds_id") for p in model.parameters())


def check_not_zero3(model: nn.Module, *, shared: bool) -> None:
    """Raise where a prior's weights are spread over ranks by DeepSpeed ZeRO-3.

    A second forward pass through a model that ZeRO-3 trains spoils the order in which it fetches
    weights, and training fails in the backward pass.
    """
    if not is_zero3(model):
        return
    if shared:
        raise ValueError(
            "Prior.shared can't score with a model that DeepSpeed ZeRO-3 has partitioned; load a "
            "separate prior with Prior.from_pretrained (each rank holds it whole), or train with "
            "ZeRO-2 or FSDP2"
        )
    raise ValueError(
        "the prior's weights were partitioned by DeepSpeed ZeRO-3 when it was loaded; load it with "
        "Prior.from_pretrained, or before the TrainingArguments are made"
    )


@contextmanager
def without_zero3() -> Iterator[None]:
    """Load a model whole, though TrainingArguments with DeepSpeed ZeRO-3 were made before."""
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


def check_not_fsdp1(trainee: nn.Module) -> None:
    """Raise where FSDP version 1 has wrapped a trainee whose base a prior is to share."""
    if has_fsdp1(trainee):
        raise ValueError(
            "Prior.shared can't score with a model that FSDP version 1 has wrapped; set "
            "fsdp_version: 2 (in fsdp_config, or accelerate's config), or load a separate prior "
            "with Prior.from_pretrained"
        )


def has_fsdp1(model: nn.Module) -> bool:
    """Whether FSDP version 1 has wrapped parts of the model."""
    return any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules())


def global_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a parameter, however it is spread."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a parameter: itself, or gathered from all ranks (collective)."""
    if _is_dtensor(tensor):
        return tensor.full_tensor()  # type: ignore[attr-defined]
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def storage_of(tensor: Tensor) -> int:
    """Tells tied weights: where in memory a parameter, or the part of it that is here, stands."""
    local = tensor.to_local() if _is_dtensor(tensor) else tensor  # type: ignore[attr-defined]
    return local.data_ptr() or id(tensor)


def copy_into(target: Tensor, whole: Tensor) -> None:
    """Write a whole tensor into a parameter, of which a rank may hold a part (collective)."""
    if _is_dtensor(target):
        from torch.distributed.tensor import distribute_tensor

        whole = whole.to(device=target.device, dtype=target.dtype)
        whole = distribute_tensor(whole, target.device_mesh, target.placements)  # type: ignore[attr-defined]
    target.copy_(whole)


def run_inside(model: nn.Module, function: Callable[[], T]) -> T:
    """Call a function as if it were the forward pass of a model that FSDP2 has sharded.

    FSDP2 gathers the weights of its outermost module when that is called: the embeddings, and the
    head. Parts of the model can be called only within.
    """
    if not is_distributed():
        return function()
    embeddings = unwrap_model(model).get_input_embeddings()
    roots = (
        m for m in model.modules() if _is_fsdp(m) and any(e is embeddings for e in m.modules())
    )
    root = next(roots, None)
    if root is None:  # not sharded, or only parts that are called as a whole
        return function()
    result: list[T] = []

    def instead(*args: Any, **kwargs: Any) -> None:
        del root.forward
        result.append(function())

    root.forward = instead
    try:
        root()
    finally:
        root.__dict__.pop("forward", None)
        # The optimizer writes to the parts, not to what was gathered of them.
        root.reshard()  # type: ignore[operator]
    return result[0]


class Rendezvous:
    """Brings the ranks together for one batch; does nothing unless weights are sharded."""

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


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor") and hasattr(tensor, "placements")


def _is_fsdp(module: nn.Module) -> bool:
    return hasattr(module, "unshard") and hasattr(module, "reshard")
