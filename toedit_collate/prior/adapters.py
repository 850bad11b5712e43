"""Scoring with the frozen base of a model in training, and leaving no trace of it.

PEFT's own switches do more than switch: leaving `disable_adapter()` unfreezes parameters that the
user froze, and `set_adapter()` makes the adapter trainable. So the two attributes that tell a PEFT
layer what to do are set here, and set back. Nothing in this file imports peft: its layers are found
by those attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def adapter_layers(model: nn.Module) -> list[Any]:
    """The modules of `model` through which PEFT acts, of every tuner type."""
    return [
        module
        for module in model.modules()
        if hasattr(module, "_disable_adapters") and hasattr(module, "_active_adapter")
    ]


def adapter_names(model: nn.Module) -> set[str]:
    """The names of the adapters that `model` holds."""
    names: set[str] = set()
    for layer in adapter_layers(model):
        for held in _holders(layer):
            names.update(held.keys())
    return names


def active_adapter(model: Any) -> str | None:
    """The adapter that a PEFT model has switched on; None for other models."""
    return getattr(model, "active_adapter", None) if hasattr(model, "peft_config") else None


def _holders(layer: Any) -> Iterator[Any]:
    """The dictionaries in which a PEFT layer keeps the parts of its adapters, by their names."""
    for attribute in (*getattr(layer, "adapter_layer_names", ()), "modules_to_save"):
        held = getattr(layer, attribute, None)
        if hasattr(held, "keys"):
            yield held


def unwrap_layer(module: Any, adapter: str | None) -> Any:
    """The plain layer that computes what `module` does with `adapter` on, or with adapters off.

    None where there is no plain layer (an adapter of its own is added to the layer's output).
    """
    if hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
        if adapter is not None and adapter in module.modules_to_save:
            return module.modules_to_save[adapter]
        return module.original_module
    if hasattr(module, "_disable_adapters") and hasattr(module, "get_base_layer"):
        touched = any(
            adapter in getattr(module, name, ())
            for name in getattr(module, "adapter_layer_names", ())
        )
        return None if touched else module.get_base_layer()
    return module


@contextmanager
def adapters_switched(model: nn.Module, adapter: str | None) -> Iterator[None]:
    """Switch all adapters of `model` off, or exactly `adapter` on; afterwards as before.

    No parameter is touched: neither values nor `requires_grad`, nor gradients.
    """
    layers = adapter_layers(model)
    before = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter]
        yield
    finally:
        for layer, (disabled, active) in zip(layers, before, strict=True):
            layer._disable_adapters = disabled
            layer._active_adapter = active


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """`model.eval()`; afterwards each module as before.

    In eval mode there is no dropout, no embedding noise (NEFTune) and no gradient checkpointing,
    so that scoring consumes no random numbers and gives the same every time.
    """
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def parameters_used(model: nn.Module, adapter: str | None) -> list[nn.Parameter]:
    """The parameters of `model` with exactly `adapter` on, or with adapters off; in their order."""
    of_others = {
        id(parameter)
        for layer in adapter_layers(model)
        for held in _holders(layer)
        if isinstance(held, nn.Module)
        for name, parameter in held.named_parameters()
        if adapter is None or name.split(".")[0] != adapter
    }
    return [parameter for parameter in model.parameters() if id(parameter) not in of_others]


def check_base_is_frozen(model: nn.Module, adapter: str | None) -> None:
    """Raise where the weights that a shared prior scores with would change in training."""
    layers = adapter_layers(model)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    if not layers and trainable:
        raise ValueError(
            f"Prior.shared: the trainee has no adapter and trains its own weights (for example "
            f"{trainable[0]!r}), so there is no frozen base to score with; train with LoRA "
            "(peft_config=...), or load a separate prior with Prior.from_pretrained"
        )
    if any(getattr(layer, "merged", False) for layer in layers):
        raise ValueError(
            "Prior.shared: the trainee's adapter is merged into its base; call "
            "model.unmerge_adapter() first"
        )
    scored_with = {id(parameter) for parameter in parameters_used(model, adapter)}
    stray = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) in scored_with
    ]
    if stray:
        raise ValueError(
            f"Prior.shared: {stray[0]!r} (and {len(stray) - 1} more) is trained, but is part of "
            "what the prior scores with, so that the prior would drift; use bias='none' and a "
            "frozen adapter, or load a separate prior with Prior.from_pretrained"
        )


def check_adapter_exists(model: nn.Module, adapter: str | None) -> None:
    """Raise where `model` has no adapter of that name."""
    names = adapter_names(model)
    if adapter is not None and adapter not in names:
        raise ValueError(
            f"adapter {adapter!r} is not in the model, which has {sorted(names) or 'none'}; load "
            "it with model.load_adapter(path, adapter_name=..., is_trainable=False)"
        )
