"""Taking over the weights of a checkpoint, in place: all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .adapters import active_adapters
from .families import unwrap_model
from .swap_checks import check_config, check_names, check_tensors
from .weights import Weights, from_folder, from_state, holds_adapter


@dataclass(frozen=True)
class PreparedSwap:
    """A checkpoint that was checked, and is not copied yet.

    Attributes:
        model: the prior's model, wrapped by PEFT if an adapter comes to it.
        adapter: name of the adapter with which a shared prior is to score.
        copy: writes the weights into the model; a collective where it is sharded over ranks.
        discard: leaves the model as it was before anything was copied.
        replaces: whether weights that the prior has scored with are written over; if not, it may
            go on with them after a copy that failed.
    """

    model: nn.Module
    adapter: str | None
    copy: Callable[[], None]
    discard: Callable[[], Any]
    replaces: bool = True


def prepare_swap(
    model: nn.Module, source: Path | Mapping[str, Tensor], *, shared: bool, adapter: str | None
) -> PreparedSwap:
    """Check all of a checkpoint, to copy it into a prior's model; see `Prior.swap`."""
    weights = from_state(source) if isinstance(source, Mapping) else from_folder(source)
    if holds_adapter(weights):
        from .swap_adapter import prepare_adapter

        return prepare_adapter(model, source, weights, shared=shared, adapter=adapter)
    if shared:
        raise ValueError(
            f"checkpoint {weights.where} holds full weights, but this prior shares its base with "
            "the trainee; swap in an adapter, or use a separate prior"
        )
    if on := active_adapters(model):
        raise ValueError(
            f"checkpoint {weights.where} holds full weights, but the prior has the adapter "
            f"{on[0]!r} on, which would stay on over them; merge it first "
            "(prior.model.merge_and_unload()) and make a Prior of the result, or swap in an adapter"
        )
    copy_all = _prepare_full(unwrap_model(model), source, weights)
    return PreparedSwap(model, None, copy_all, discard=leave_alone)


def leave_alone() -> None:
    """Leave a model as it is."""


def _prepare_full(
    lm: Any, source: Path | Mapping[str, Tensor], weights: Weights
) -> Callable[[], None]:
    # state_dict() returns the tensors themselves; PEFT layers keep theirs under `base_layer`.
    target = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in lm.state_dict().items()
        if "lora_" not in name
    }
    if isinstance(source, Path) and not set(target) >= set(weights.names):
        # Families whose files name their weights otherwise than the model does (fused experts,
        # say): let transformers do the conversion, on the CPU.
        weights = _converted(lm, source)
    check_names(target, weights)
    copy_all = check_tensors(target, weights)
    check_config(lm, source, weights.where)
    return copy_all


def _converted(lm: Any, folder: Path) -> Weights:
    try:
        loaded, info = type(lm).from_pretrained(
            folder, dtype="auto", output_loading_info=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"checkpoint {folder} can't be loaded: {error}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(problem):
            raise ValueError(
                f"checkpoint {folder} does not fit the prior: {problem} "
                f"{sorted(map(str, info[problem]))[:3]}; it must be of the prior's architecture"
            )
    return Weights(str(folder), {n: partial(_itself, t) for n, t in loaded.state_dict().items()})


def _itself(tensor: Tensor) -> Tensor:
    return tensor
