"""Taking over an adapter: into the one that a prior has, or beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import active_adapter, adapter_names
from .facts import deciding_adapter_config, differences
from .families import find_head, unwrap_model
from .swap import PreparedSwap, leave_alone
from .swap_checks import check_tensors
from .trainee import changes_base
from .weights import Weights

SHARED_ADAPTER = "toedit_prior"


def prepare_adapter(
    model: Any,
    source: Path | Mapping[str, Tensor],
    weights: Weights,
    *,
    shared: bool,
    adapter: str | None,
) -> PreparedSwap:
    """Check an adapter, to copy it into the prior's own, or into a new one; see `Prior.swap`."""
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
        _check_same_config(model.peft_config[name], config, name, weights.where)
    # In memory, the name of an adapter stands in the names of its weights; in files it does not.
    target = adapter_weights(model, name)
    plain = weights.renamed(lambda name: name.replace(".default", ""))
    try:
        if set(plain.names) != set(target):
            raise ValueError(
                f"the adapter of {weights.where} does not fit the prior's adapter {name!r}: they "
                f"differ in {sorted(set(plain.names) ^ set(target))[:3]}"
            )
        copy_all = check_tensors(target, plain)
        if shared:
            find_head(unwrap_model(model), name)  # refuses an adapter of the head
    except ValueError:
        discard()
        raise
    return PreparedSwap(
        model, name if shared else None, copy_all, discard, replaces=discard is leave_alone
    )


def adapter_weights(model: Any, adapter: str) -> dict[str, Tensor]:
    """The parameters of an adapter, under the names that they have in its checkpoint.

    They are the parameters themselves, which know how they are spread over ranks.
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
        try:
            return PeftConfig.from_pretrained(str(source))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"adapter {source} has no configuration ({error})") from error
    return copy.deepcopy(getattr(source, "peft_config", None))


def _check_same_config(here: Any, there: Any, name: str, where: str) -> None:
    """Raise where an adapter's weights mean something else in another one of the same shapes."""
    different = differences(deciding_adapter_config(here), deciding_adapter_config(there))
    if different:
        raise ValueError(
            f"the adapter of {where} was made with other settings than the prior's adapter "
            f"{name!r}, which would scale its weights wrongly: {different}; load it as a prior of "
            "its own by Prior.from_pretrained(base, adapter=...), or train with the same settings"
        )


def _add_empty_adapter(
    model: Any, config: Any, name: str, *, shared: bool
) -> tuple[Any, Callable[[], Any]]:
    """Add a frozen adapter without effect.

    Returns:
        The model, and a function that takes the adapter away again.
    """
    from peft import get_peft_model

    if shared and not hasattr(model, "peft_config"):
        raise ValueError(
            "Prior.shared was given a model before PEFT was put on it, so that no second adapter "
            "can be added; share `trainer.model` instead"
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
        # Its weights are drawn at random, before they are overwritten; training must not notice.
        with _flags_kept(model), _random_state_kept(model):
            if hasattr(model, "peft_config"):
                model.add_adapter(name, config)
                return model, lambda: model.delete_adapter(name)
            wrapped = get_peft_model(model, config, adapter_name=name)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"the adapter can't be put on the prior: {error}") from error
    wrapped.eval().requires_grad_(False)
    return wrapped, wrapped.unload


def _random_state_kept(model: nn.Module) -> Any:
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)


@contextmanager
def _flags_kept(model: nn.Module) -> Iterator[None]:
    """Adding an adapter may put the model into eval mode, and change `requires_grad`."""
    training = [module for module in model.modules() if module.training]
    grads = {id(p): p.requires_grad for p in model.parameters()}
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in model.parameters():
            parameter.requires_grad = grads.get(id(parameter), False)
