"""Reads a checkpoint (a folder of safetensors, or a state dict), checks it, and copies it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .fingerprint import deciding_config, differences
from .sharding import copy_into, storage_of

logger = logging.getLogger("toedit_collate")


class Weights:
    """The tensors of a checkpoint by name, read one at a time.

    Args:
        where: what messages call it.
        names: how to read each tensor.
        files: from which they are read.
    """

    def __init__(
        self, where: str, names: dict[str, Callable[[], Tensor]], files: Sequence[Path] = ()
    ) -> None:
        self.where = where
        self.names = names
        self.files = {path: _state_of(path) for path in files}

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.names[name]()
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"checkpoint {self.where} can't be read at {name!r} ({error}); is it still being "
                "written?"
            ) from error

    def renamed(self, change: Callable[[str], str]) -> Weights:
        """The same tensors by other names."""
        other = Weights(self.where, {change(name): read for name, read in self.names.items()})
        other.files = self.files
        return other

    def without(self, names: Collection[str]) -> Weights:
        """All but some of the tensors."""
        other = Weights(self.where, {n: read for n, read in self.names.items() if n not in names})
        other.files = self.files
        return other

    def check_unchanged(self) -> None:
        """Raise a ValueError if a file has changed since it was opened; deleted ones stay open."""
        for path, before in self.files.items():
            if path.exists() and _state_of(path) != before:
                raise ValueError(
                    f"checkpoint file {path} was changed after it was checked; swap again when it "
                    "is complete"
                )


def _state_of(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def from_state(state: Mapping[str, Tensor]) -> Weights:
    """The tensors of a state dict, without the prefixes of DDP and torch.compile.

    Raises:
        TypeError: it holds something else.
        ValueError: a tensor has no dense values.
    """
    names: dict[str, Callable[[], Tensor]] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(
                f"a state dict must hold tensors by name, got {type(tensor).__name__} for "
                f"{name!r}; pass model.state_dict()"
            )
        if tensor.is_meta or tensor.layout != torch.strided:
            raise ValueError(
                f"state dict: {name!r} is a tensor of device {tensor.device} and layout "
                f"{tensor.layout}, which can't be copied; pass one with dense values"
            )
        names[name.removeprefix("_orig_mod.").removeprefix("module.")] = tensor.detach
    return Weights("state dict", names)


def from_folder(folder: Path) -> Weights:
    """The tensors of a saved model or adapter, whose files stay open.

    Raises:
        FileNotFoundError: there is no such folder, or it has no safetensors.
        ValueError: a file is torn or missing.
    """
    if folder.is_file():
        raise FileNotFoundError(f"checkpoint {folder} is a file; pass the folder that it is in")
    if not folder.is_dir():
        raise FileNotFoundError(f"checkpoint folder {folder} does not exist")
    for index in ("model.safetensors.index.json", "adapter_model.safetensors.index.json"):
        if (folder / index).is_file():
            files = _shards(folder, folder / index)
            break
    else:
        candidates = [folder / "model.safetensors", folder / "adapter_model.safetensors"]
        files = [path for path in candidates if path.is_file()][:1]
    if not files:
        raise FileNotFoundError(
            f"checkpoint {folder} has no model.safetensors, no adapter_model.safetensors and no "
            "index of shards; only safetensors are read: save with save_pretrained"
        )
    names: dict[str, Callable[[], Tensor]] = {}
    for path in files:
        try:
            opened = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"checkpoint file {path} is not a complete safetensors file ({error}); is it "
                "still being written?"
            ) from error
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            names[name] = partial(opened.get_tensor, name)
    return Weights(str(folder), names, files)


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = dict(json.loads(index.read_text())["weight_map"]).values()
        files = sorted({folder / Path(name).name for name in names})
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint index {index} is not readable ({error!r})") from error
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise ValueError(f"checkpoint {folder} lacks the shards {absent}; is it being written?")
    return files


def holds_adapter(weights: Weights) -> bool:
    """Whether these are the weights of an adapter alone."""
    return any("lora_" in name or name.startswith("base_model.") for name in weights.names)


class HalfCopiedError(RuntimeError):
    """A copy failed halfway: only some weights of a prior are new."""


def check_names(target: dict[str, Tensor], weights: Weights) -> None:
    """Raise where a checkpoint has other weights than a model, or two for one."""
    unexpected = sorted(set(weights.names) - set(target))
    present = {storage_of(target[name]) for name in weights.names if name in target}
    # A tied weight is saved once, under one of its names.
    missing = sorted(
        name
        for name, tensor in target.items()
        if name not in weights.names and storage_of(tensor) not in present
    )
    if unexpected or missing:
        raise ValueError(
            f"checkpoint {weights.where} does not fit the prior: missing {missing[:3]}, unexpected "
            f"{unexpected[:3]}; it must be of the prior's architecture"
        )
    _check_ties(target, weights)


def check_tensors(target: dict[str, Tensor], weights: Weights) -> Callable[[], None]:
    """Read and check everything once; returns a function that reads and copies it."""
    for name in weights.names:
        if problem := _problem(target[name], weights[name]):
            raise ValueError(f"checkpoint {weights.where}: {name!r} {problem}")

    def copy_all() -> None:
        weights.check_unchanged()
        try:
            with torch.no_grad():
                for name in weights.names:
                    copy_into(target[name], weights[name])
        except Exception as error:
            raise HalfCopiedError(
                f"a swap of the prior failed while the weights of {weights.where} were copied "
                f"({error}), so the prior may have weights of both; load it again, or swap in a "
                "complete checkpoint"
            ) from error

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
    small = tensor.is_floating_point() and tensor.element_size() < 2
    if small or target.is_floating_point() != tensor.is_floating_point():
        return (
            f"is of {tensor.dtype}, and the prior's of {target.dtype}; save it unquantised, in 16 "
            "or 32 bits"
        )
    if not tensor.is_floating_point() or not tensor.numel():
        return ""
    if not tensor.isfinite().all():
        return "is not finite; training has diverged, so the old prior is kept"
    most, largest = torch.finfo(target.dtype).max, float(tensor.abs().max())
    if largest > most:  # it would be infinite in the prior
        return (
            f"holds {largest:.3g}, but the prior's {target.dtype} ends at {most:.3g}; load the "
            "prior with dtype=torch.bfloat16 or torch.float32"
        )
    return ""


def _check_ties(target: dict[str, Tensor], weights: Weights) -> None:
    """Raise where two different tensors would go to one weight."""
    first: dict[int, str] = {}
    for name in weights.names:
        other = first.setdefault(storage_of(target[name]), name)
        if other != name and not torch.equal(weights[other], weights[name]):
            raise ValueError(
                f"checkpoint {weights.where}: {other!r} and {name!r} differ, but are one tied "
                "weight in the prior (tie_word_embeddings); load a prior that is not tied"
            )


def check_config(lm: Any, source: Path | Mapping[str, Tensor], where: str) -> None:
    """Raise a ValueError where a checkpoint's configuration would change the scores.

    Names and shapes of weights do not show rotary positions, windows, scales and epsilons.
    """
    if isinstance(source, Path):
        if not (source / "config.json").is_file():
            logger.warning(
                "checkpoint %s has no config.json, so only the names and shapes of its weights "
                "were compared with the prior's, not rotary positions, scales or windows; save it "
                "with save_pretrained",
                where,
            )
            return
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(source)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"checkpoint {where}: config.json can't be read ({error})") from error
    else:
        config = getattr(source, "config", None)
        if config is None:
            return
    different = differences(deciding_config(lm.config), deciding_config(config))
    if different:
        raise ValueError(
            f"checkpoint {where} has another configuration than the prior, so its scores would be "
            f"wrong: {different}; load it as a separate prior with Prior.from_pretrained"
        )
