"""Scoring with the frozen base of a model in training, and leaving no trace of it.

PEFT's own switches do more than switch: leaving `disable_adapter()` unfreezes parameters that the
user froze, and `set_adapter()` makes the adapter trainable. So the two attributes that tell a PEFT
layer what to do are set here, and set back. Nothing in this file imports peft: its layers are found
by those attributes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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


def active_adapters(model: Any) -> list[str]:
    """The adapters that a PEFT model has switched on; none for other models."""
    if not hasattr(model, "peft_config"):
        return []
    found = getattr(model, "active_adapters", None) or getattr(model, "active_adapter", [])
    found = found() if callable(found) else found
    return [found] if isinstance(found, str) else list(found)


def active_adapter(model: Any) -> str | None:
    """The adapter that a PEFT model has switched on; None for other models.

    Raises:
        ValueError: several are on, so that there is no one whose weights could be meant.
    """
    found = active_adapters(model)
    if len(found) > 1:
        raise ValueError(
            f"the model has the adapters {found} on at once, and it is not clear whose weights are "
            "meant; switch one on by model.set_adapter(name), or join them with "
            "model.add_weighted_adapter(...)"
        )
    return found[0] if found else None


def _holders(layer: Any) -> Iterator[Any]:
    """The dictionaries in which a PEFT layer keeps the parts of its adapters, by their names."""
    for attribute in (*getattr(layer, "adapter_layer_names", ()), "modules_to_save"):
        held = getattr(layer, attribute, None)
        if hasattr(held, "keys"):
            yield held


def unwrap_layer(module: Any, adapters: str | Collection[str] | None) -> Any:
    """The plain layer that computes what `module` does with some adapters on, or with all off.

    None where there is no plain layer (an adapter of its own is added to the layer's output).
    """
    wanted = {adapters} if isinstance(adapters, str) else set(adapters or ())
    while True:
        if hasattr(module, "token_adapter"):  # single rows of it are trained
            if wanted & set(module.token_adapter.trainable_tokens_delta.keys()):
                return None
            module = module.token_adapter.base_layer
        elif hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
            saved = next((name for name in wanted if name in module.modules_to_save), None)
            module = module.original_module if saved is None else module.modules_to_save[saved]
        elif hasattr(module, "_disable_adapters") and hasattr(module, "get_base_layer"):
            touched = any(
                name in getattr(module, holder, ())
                for holder in getattr(module, "adapter_layer_names", ())
                for name in wanted
            )
            if touched:
                return None
            module = module.get_base_layer()
        else:
            return module


@dataclass(frozen=True)
class Survey:
    """What one walk through a model finds; a batch makes one, so it must be cheap.

    Attributes:
        training: the modules in training mode.
        layers: those through which PEFT acts.
        trained: the parameters that require gradients.
    """

    training: list[nn.Module]
    layers: list[Any]
    trained: list[nn.Parameter]


def survey(model: nn.Module) -> Survey:
    """Walk through all modules of a model, by their dictionaries: `modules()` takes much longer."""
    training, layers, trained = [], [], []
    stack, seen = [model], {id(model)}
    while stack:
        module = stack.pop()
        fields = module.__dict__
        if module.training:
            training.append(module)
        # Of the class, or of its instances; asking a module for what it lacks takes much longer.
        if "_disable_adapters" in fields or hasattr(type(module), "_disable_adapters"):
            layers.append(module)
        for parameter in fields["_parameters"].values():
            if parameter is not None and parameter.requires_grad:
                trained.append(parameter)
        for child in fields["_modules"].values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                stack.append(child)
    return Survey(training, layers, trained)


@contextmanager
def adapters_switched(layers: Sequence[Any], adapter: str | None) -> Iterator[None]:
    """Switch all adapters of some PEFT layers off, or exactly `adapter` on; afterwards as before.

    No parameter is touched: neither values nor `requires_grad`, nor gradients.
    """
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
def evaluation_mode(training: Sequence[nn.Module]) -> Iterator[None]:
    """`eval()` of the modules that are in training; afterwards each as before.

    In eval mode there is no dropout, no embedding noise (NEFTune) and no gradient checkpointing,
    so that scoring consumes no random numbers and gives the same every time.
    """
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def parameters_used(model: nn.Module, adapters: str | Collection[str] | None) -> list[nn.Parameter]:
    """The parameters of `model` with exactly some adapters on, or all off; in their order."""
    wanted = {adapters} if isinstance(adapters, str) else set(adapters or ())
    of_others = {
        id(parameter)
        for layer in adapter_layers(model)
        for held in _holders(layer)
        if isinstance(held, nn.Module)
        for name, parameter in held.named_parameters()
        if name.split(".")[0] not in wanted
    }
    return [parameter for parameter in model.parameters() if id(parameter) not in of_others]
