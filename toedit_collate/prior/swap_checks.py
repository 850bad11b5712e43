"""Checks whether the weights of a checkpoint fit a prior."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .fingerprint import deciding_config, differences
from .sharding import copy_into, storage_of
from .weights import Weights

logger = logging.getLogger("toedit_collate")


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
