"""Takes over the weights of a checkpoint in place: all or nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import active_adapter, active_adapters, adapter_names
from .families import find_head, unwrap_model
from .fingerprint import deciding_adapter_config, differences
from .frozen import changes_base
from .sharding import full_tensor
from .weights import (
    Weights,
    check_config,
    check_names,
    check_tensors,
    from_folder,
    from_state,
)

SHARED_ADAPTER = "toedit_prior"


@dataclass(frozen=True)
class PreparedSwap:
    """A checkpoint that was checked, and is not copied yet."""

    model: nn.Module  # the prior's model, wrapped by PEFT if it gets its first adapter
    adapter: str | None  # the adapter with which a shared prior will score
    # writes the weights into the model; a collective where it is sharded over ranks
    copy: Callable[[], None]
    discard: Callable[[], Any]  # restores the model as it was before anything was copied
    # whether the copy overwrites weights that the prior scores with; if not, the prior still
    # works after a failed copy
    replaces: bool = True


def prepare_swap(
    model: nn.Module, source: Path | Mapping[str, Tensor], *, shared: bool, adapter: str | None
) -> PreparedSwap:
    """Check a whole checkpoint that is to be copied into a prior's model; see `Prior.swap`."""
    weights = from_state(source) if isinstance(source, Mapping) else from_folder(source)
    if any("lora_" in name or name.startswith("base_model.") for name in weights.readers):
        return _prepare_adapter(model, source, weights, shared=shared, adapter=adapter)
    if shared:
        raise ValueError(
            f"checkpoint {weights.where} holds full weights, but this prior shares its base with "
            "the trainee; swap in an adapter, or use a separate prior"
        )
    if on := active_adapters(model):
        raise ValueError(
            f"checkpoint {weights.where} holds full weights, but the prior's adapter {on[0]!r} "
            "would stay on; merge it first (prior.model.merge_and_unload()) and make a Prior of "
            "the result, or swap in an adapter"
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
    if isinstance(source, Path) and not set(target) >= set(weights.readers):
        # Some families store other names than those of the model (fused experts, say).
        # transformers converts them, on the CPU.
        weights = _converted(lm, source)
    check_names(target, weights)
    copy_all = check_tensors(target, weights)
    check_config(lm, source, weights.where)
    return copy_all


def _converted(lm: Any, folder: Path) -> Weights:
    loaded, info = type(lm).from_pretrained(
        folder, dtype="auto", output_loading_info=True, use_safetensors=True
    )
    problems = [f"{kind} {sorted(map(str, names))[:3]}" for kind, names in info.items() if names]
    if problems:
        raise ValueError(
            f"checkpoint {folder} does not fit the prior: {'; '.join(problems)}; it must be "
            "complete and of the prior's architecture"
        )
    return Weights(str(folder), {n: t.detach for n, t in loaded.state_dict().items()})


def _prepare_adapter(
    model: Any,
    source: Path | Mapping[str, Tensor],
    weights: Weights,
    *,
    shared: bool,
    adapter: str | None,
) -> PreparedSwap:
    """Check an adapter that is to be copied into the prior's own, or into a new one."""
    name = (adapter or SHARED_ADAPTER) if shared else (active_adapter(model) or "default")
    discard: Callable[[], Any] = leave_alone
    config = _adapter_config(source)
    if name not in adapter_names(model):
        if config is None:
            raise ValueError(
                "the state dict of an adapter has no configuration, and the prior has no adapter "
                "to put it in; pass the folder of a saved adapter first"
            )
        model, discard = _add_empty_adapter(model, config, name, shared=shared)
    elif config is not None:
        ours = deciding_adapter_config(model.peft_config[name])
        if different := differences(ours, deciding_adapter_config(config)):
            raise ValueError(
                f"the adapter of {weights.where} was made with other settings than the prior's "
                f"adapter {name!r}, so its scores would be wrong: {different}; load it as a "
                "separate prior with Prior.from_pretrained(base, adapter=...)"
            )
    # The names of weights contain the name of the adapter in memory, but not in files.
    target = adapter_weights(model, name)
    readers = {name.replace(".default", ""): read for name, read in weights.readers.items()}
    weights = Weights(weights.where, readers)
    try:
        _drop_saved_base(weights, target, unwrap_model(model))
        if set(readers) != set(target):
            raise ValueError(
                f"the adapter of {weights.where} does not fit the prior's adapter {name!r}: they "
                f"differ in {sorted(set(readers) ^ set(target))[:3]}"
            )
        copy_all = check_tensors(target, weights)
        find_head(unwrap_model(model), name)  # refuses an adapter of the head
    except BaseException:
        discard()
        raise
    return PreparedSwap(
        model, name if shared else None, copy_all, discard, replaces=discard is leave_alone
    )


def _drop_saved_base(weights: Weights, target: dict[str, Tensor], lm: Any) -> None:
    """Drop the embeddings that PEFT saves next to an adapter on them, if the prior has them.

    Raises:
        ValueError: they differ from the prior's.
    """
    own = lm.state_dict()
    saved = [name for name in weights.readers if ".base_layer." in name and name not in target]
    for name in saved:
        ours = own.get(name.removeprefix("base_model.model."))
        if ours is None or not torch.equal(weights[name].to(ours), full_tensor(ours)):
            raise ValueError(
                f"the adapter of {weights.where} comes with {name!r}, which is not that of the "
                "prior; load the trainee's base as the prior"
            )
        del weights.readers[name]


def adapter_weights(model: Any, adapter: str) -> dict[str, Tensor]:
    """The parameters of an adapter, under the names that they have in its checkpoint.

    They are the parameters themselves, so that sharded ones can be gathered.
    """
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(
        model,
        state_dict=model.state_dict(keep_vars=True),
        adapter_name=adapter,
        save_embedding_layers=False,
    )


def _adapter_config(source: Path | Mapping[str, Tensor]) -> Any:
    from peft import PeftConfig

    if isinstance(source, Path):
        return PeftConfig.from_pretrained(str(source))
    return copy.deepcopy(getattr(source, "peft_config", None))


def _add_empty_adapter(
    model: Any, config: Any, name: str, *, shared: bool
) -> tuple[Any, Callable[[], Any]]:
    """Add a frozen adapter without effect.

    Returns:
        The model, and a function that removes the adapter.
    """
    from peft import get_peft_model

    if (shared or hasattr(model, "peft_config")) and not hasattr(model, "get_base_model"):
        raise ValueError(
            "the model can't hold an adapter for the prior, since PEFT does not wrap it; make the "
            "model with peft.get_peft_model(model, config), and share `trainer.model`"
        )
    changed = changes_base(config)
    if changed is not None:
        raise ValueError(
            f"the adapter was made with {changed}, and putting it on the prior would rewrite the "
            "prior's base; save it as plain LoRA (model.save_pretrained(folder, "
            "path_initial_model_for_weight_conversion=...)), or merge it and swap in full weights"
        )
    config.inference_mode = True
    try:
        # Random weights are drawn first, which must not change the random numbers of training.
        device = next(model.parameters()).device
        devices = [device] if device.type == "cuda" else []
        with _flags_kept(model), torch.random.fork_rng(devices):
            if hasattr(model, "peft_config"):
                model.add_adapter(name, config)
                return model, lambda: model.delete_adapter(name)
            wrapped = get_peft_model(model, config, adapter_name=name)
    except Exception as error:  # of any kind: the model must stay as it was
        if hasattr(model, "peft_config"):
            # After an error, PEFT removes the configuration but not the new layers.
            model.peft_config[name] = config
            model.delete_adapter(name)
        raise ValueError(f"the adapter can't be put on the prior: {error}") from error
    wrapped.eval().requires_grad_(False)
    return wrapped, wrapped.unload


@contextmanager
def _flags_kept(model: nn.Module) -> Iterator[None]:
    """Restore training mode and `requires_grad`, which adding an adapter may change."""
    training = [module for module in model.modules() if module.training]
    grads = {id(p): p.requires_grad for p in model.parameters()}
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in model.parameters():
            parameter.requires_grad = grads.get(id(parameter), False)
