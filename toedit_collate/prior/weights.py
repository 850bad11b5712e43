"""Reads a checkpoint (a folder of safetensors, or a state dict), checks it, and copies it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .fingerprint import deciding_config, differences
from .sharding import copy_into, storage_of

# What a folder may hold, in the order of transformers.
_FILES = ("model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors")


class Weights:
    """The tensors of a checkpoint, read one at a time.

    Args:
        where: what messages call it.
        readers: how to read each tensor, by its name.
    """

    def __init__(self, where: str, readers: dict[str, Callable[[], Tensor]]) -> None:
        self.where = where
        self.readers = readers

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.readers[name]()
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"checkpoint {self.where} can't be read at {name!r} ({error}); is it still being "
                "written?"
            ) from error


def from_state(state: Mapping[str, Tensor]) -> Weights:
    """The tensors of a state dict, without the prefixes of DDP and torch.compile.

    Raises:
        TypeError: it holds something else.
    """
    readers: dict[str, Callable[[], Tensor]] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(
                f"a state dict must hold tensors by name, got {type(tensor).__name__} for "
                f"{name!r}; pass model.state_dict()"
            )
        readers[name.removeprefix("_orig_mod.").removeprefix("module.")] = tensor.detach
    return Weights("state dict", readers)


def from_folder(folder: Path) -> Weights:
    """The tensors of a saved model or adapter, whose files stay open.

    Raises:
        FileNotFoundError: there is no such folder, or it has no safetensors.
        ValueError: a file is torn.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"checkpoint folder {folder} does not exist")
    files = next((found for name in _FILES if (found := sorted(folder.glob(name)))), [])
    if not files:
        raise FileNotFoundError(
            f"checkpoint {folder} has no model.safetensors, no shards of it and no "
            "adapter_model.safetensors; only safetensors are read: save with save_pretrained"
        )
    readers: dict[str, Callable[[], Tensor]] = {}
    for path in files:
        try:
            opened = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"checkpoint file {path} is not a complete safetensors file ({error}); is it "
                "still being written?"
            ) from error
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            readers[name] = partial(opened.get_tensor, name)
    return Weights(str(folder), readers)


def check_names(target: dict[str, Tensor], weights: Weights) -> None:
    """Raise where a checkpoint has other weights than a model."""
    unexpected = sorted(set(weights.readers) - set(target))
    present = {storage_of(target[name]) for name in weights.readers if name in target}
    # A tied weight is saved once, under one of its names.
    missing = sorted(
        name
        for name, tensor in target.items()
        if name not in weights.readers and storage_of(tensor) not in present
    )
    if unexpected or missing:
        raise ValueError(
            f"checkpoint {weights.where} does not fit the prior: missing {missing[:3]}, unexpected "
            f"{unexpected[:3]}; it must be complete and of the prior's architecture"
        )


def check_tensors(target: dict[str, Tensor], weights: Weights) -> Callable[[], None]:
    """Read and check everything once; returns a function that reads and copies it."""
    for name in weights.readers:
        if problem := _problem(target[name], weights[name]):
            raise ValueError(f"checkpoint {weights.where}: {name!r} {problem}")

    def copy_all() -> None:
        with torch.no_grad():
            for name in weights.readers:
                copy_into(target[name], weights[name])

    return copy_all


def _problem(target: Tensor, tensor: Tensor) -> str:
    """Why a tensor can't be copied into a weight; "" if it can."""
    if tensor.shape != target.shape:
        return (
            f"has shape {tuple(tensor.shape)}, the prior's has {tuple(target.shape)}; it must be "
            "of the same model"
        )
    if type(target).__name__ not in ("Parameter", "Tensor", "DTensor", "Buffer"):
        return (
            f"is of {tensor.dtype}, but the prior holds it as {target.dtype} "
            f"({type(target).__name__}), quantised; load the prior without quantization, or swap "
            "in an adapter"
        )
    if target.is_floating_point() != tensor.is_floating_point():
        return f"is of {tensor.dtype}, and the prior's of {target.dtype}; save it unquantised"
    if not tensor.to(target.dtype).isfinite().all():
        return (
            f"is not finite as {target.dtype}: training has diverged, or the prior needs "
            "dtype=torch.bfloat16 or torch.float32"
        )
    return ""


def check_config(lm: Any, source: Path | Mapping[str, Tensor], where: str) -> None:
    """Raise a ValueError where a checkpoint's configuration would change the scores.

    Names and shapes of weights do not show rotary positions, windows, scales and epsilons.
    """
    config = getattr(source, "config", None)
    if isinstance(source, Path) and (source / "config.json").is_file():
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(source)
    if config is None:
        return
    different = differences(deciding_config(lm.config), deciding_config(config))
    if different:
        raise ValueError(
            f"checkpoint {where} has another configuration than the prior, so its scores would be "
            f"wrong: {different}; load it as a separate prior with Prior.from_pretrained"
        )
