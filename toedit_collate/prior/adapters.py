"""What PEFT has put into a model, found without importing peft.

PEFT's own switches change more than they should: leaving `disable_adapter()` unfreezes parameters
that the user froze, and `set_adapter()` makes the adapter trainable. So `frozen.py` sets the two
attributes that tell a PEFT layer what to do, and sets them back. Layers are found by these.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import nn


def adapter_layers(model: nn.Module) -> list[Any]:
    """The modules of `model` through which PEFT acts, of every tuner type."""
    return survey(model).layers


def adapter_names(model: nn.Module) -> set[str]:
    """The names of the adapters that `model` contains."""
    layers = adapter_layers(model)
    return {name for layer in layers for held in _holders(layer) for name in held}


def active_adapters(model: Any) -> list[str]:
    """The adapters that a PEFT model has switched on; none for other models."""
    if not hasattr(model, "peft_config"):
        return []
    found = getattr(model, "active_adapters", None) or getattr(model, "active_adapter", [])
    found = found() if callable(found) else found
    return [found] if isinstance(found, str) else list(found)


def active_adapter(model: Any) -> str | None:
    """The only adapter that a PEFT model has switched on; None for other models.

    Raises:
        ValueError: several are on, so that it is unclear whose weights are meant.
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
    """The dictionaries in which a PEFT layer keeps its adapters by name."""
    names = (getattr(layer, f"{of}_names", ()) for of in ("adapter_layer", "other_param"))
    for attribute in (*chain(*names), "modules_to_save"):
        held = getattr(layer, attribute, None)
        if hasattr(held, "keys"):
            yield held


def unwrap_layer(module: Any, adapters: str | Collection[str] | None) -> Any:
    """The plain layer that computes what `module` does with only some adapters on, or with none.

    None where there is no such layer: an adapter adds to the layer's output.
    """
    wanted = {adapters} if isinstance(adapters, str) else set(adapters or ())
    while True:
        if hasattr(module, "token_adapter"):  # only some of its rows are trained
            if wanted & set(module.token_adapter.trainable_tokens_delta.keys()):
                return None
            module = module.token_adapter.base_layer
        elif hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
            saved = next((name for name in wanted if name in module.modules_to_save), None)
            module = module.original_module if saved is None else module.modules_to_save[saved]
        elif hasattr(module, "_disable_adapters") and hasattr(module, "get_base_layer"):
            holders = [getattr(module, name, ()) for name in module.adapter_layer_names]
            if any(name in held for held in holders for name in wanted):
                return None
            module = module.get_base_layer()
        else:
            return module


@dataclass(frozen=True)
class Survey:
    """What one walk through a model finds. Each batch makes one, so it must be cheap."""

    training: list[nn.Module]  # the modules in training mode
    layers: list[Any]  # those through which PEFT acts
    trained: list[nn.Parameter]  # the parameters that require gradients


def survey(model: nn.Module) -> Survey:
    """Walk through all modules of a model by their dictionaries; `modules()` takes much longer."""
    training, layers, trained = [], [], []
    stack, seen = [model], {id(model)}
    while stack:
        module = stack.pop()
        fields = module.__dict__
        if module.training:
            training.append(module)
        # Not getattr: for an attribute that a module lacks, it takes much longer.
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


def parameters_used(model: nn.Module, adapters: str | Collection[str] | None) -> list[nn.Parameter]:
    """The parameters of `model` with only some adapters on, or with none, in their order."""
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
