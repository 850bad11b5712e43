"""Runs a prior's model with frozen weights, and checks that training does not change them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .adapters import Survey, adapter_layers, adapter_names, parameters_used, survey, unwrap_layer
from .families import unwrap_model

# Kinds of adapters that, switched off, leave the model as it was before them. Some others rewrite
# the base when they are put on it (OSF, say), or have no switch in their layers.
_LEAVE_THE_BASE = {
    "LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA", "FOURIERFT", "HRA", "VBLORA",
    "LN_TUNING", "RANDLORA", "SHIRA", "C3A", "MISS", "BONE", "TRAINABLE_TOKENS", "ROAD", "POLY",
}  # fmt: skip
# Prompts are put before a model's input, and do not change the model.
_PROMPTS = {
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE",
}  # fmt: skip
# `init_lora_weights` that leave the base alone. Others (pissa, olora, corda, loftq, lora_ga) move
# a part of the base into the adapter.
_GENTLE_INITS = ("gaussian", "eva", "orthogonal")


class FrozenModel:
    """Runs a model, and checks that training does not change its weights."""

    def __init__(self, shared: bool) -> None:
        self._shared = shared
        # Parameters that may be trained: those of the trainee's adapters. They are kept alive,
        # since the id of a deleted parameter may be reused.
        self._may_be_trained: dict[int, nn.Parameter] = {}

    @contextmanager
    def scoring(
        self,
        model: nn.Module,
        adapter: str | None,
        dtype: torch.dtype | None,
        *,
        check: bool = True,
    ) -> Iterator[None]:
        """Score with the frozen weights, after a check that training does not change them.

        A shared model scores with `adapter` on, or with all adapters off. It computes in `dtype`,
        or in that of its weights. Afterwards, everything is as before.

        Raises:
            ValueError: an adapter was merged into the weights, or they are trained.
        """
        found = survey(model)
        if check:
            self._check(model, adapter, found)
        layers = found.layers if self._shared else []
        before = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
        try:
            # Eval mode: no dropout, no embedding noise (NEFTune), no gradient checkpointing.
            for module in found.training:
                module.training = False
            for layer in layers:
                layer._disable_adapters = adapter is None
                if adapter is not None:
                    layer._active_adapter = [adapter]
            # Not inference_mode: it marks tensors that FSDP2 must write to in its next step.
            with torch.no_grad(), own_precision(input_device(model), dtype):
                yield
        finally:
            for layer, (disabled, active) in zip(layers, before, strict=True):
                layer._disable_adapters, layer._active_adapter = disabled, active
            for module in found.training:
                module.training = True

    def _check(self, model: nn.Module, adapter: str | None, found: Survey) -> None:
        """Runs for each batch: an adapter may be merged, or a part unfrozen, at any time."""
        known = self._may_be_trained
        stray = any(id(parameter) not in known for parameter in found.trained)
        if not self._shared:
            if stray:
                check_prior_is_frozen(model)
            return
        merged = any(getattr(layer, "merged_adapters", None) for layer in found.layers)
        if stray or merged or not found.layers:
            check_base_is_frozen(model, adapter)
            used = {id(p) for p in parameters_used(unwrap_model(model), adapter)}
            self._may_be_trained = {id(p): p for p in model.parameters() if id(p) not in used}


@contextmanager
def own_precision(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Compute in `dtype`, or in that of the weights, whatever autocast the caller uses.

    A batch is edited where it is first read, and that place must not change the edit.
    """
    if not (dtype is not None or torch.is_autocast_enabled(device.type)):
        yield
        return
    # No cache: a weight that is cached under no_grad would have no gradient in training.
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False):
        yield


def input_device(model: nn.Module) -> torch.device:
    """The device of a model's input."""
    embeddings = unwrap_layer(unwrap_model(model).get_input_embeddings(), None)
    return embeddings.weight.device


def check_base_is_frozen(model: nn.Module, adapter: str | None) -> None:
    """Raise where training would change the weights that a shared prior scores with."""
    layers = adapter_layers(model)
    lm = unwrap_model(model)
    trainable = [name for name, p in lm.named_parameters() if p.requires_grad]
    if not layers and trainable:
        raise ValueError(
            f"Prior.shared: the trainee has no adapter and trains its own weights (for example "
            f"{trainable[0]!r}), so there is no frozen base to score with; train with LoRA "
            "(peft_config=...), or load a separate prior with Prior.from_pretrained"
        )
    if any(getattr(layer, "merged_adapters", None) for layer in layers):
        raise ValueError(
            "Prior.shared: the trainee's adapter is merged into its base; call "
            "model.unmerge_adapter() first"
        )
    scored_with = {id(parameter) for parameter in parameters_used(lm, adapter)}
    stray = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) in scored_with
    ]
    if stray:
        raise ValueError(
            f"Prior.shared: {stray[0]!r} (and {len(stray) - 1} more) is trained, but is part of "
            "what the prior scores with, so the prior would change in training; use bias='none' "
            "and a frozen adapter, or load a separate prior with Prior.from_pretrained"
        )
    check_base_is_pretrained(model, adapter)


def check_prior_is_frozen(model: nn.Module) -> None:
    """Raise where a separate prior's weights require gradients."""
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    if trainable:
        raise ValueError(
            f"the prior's {trainable[0]!r} (and {len(trainable) - 1} more) requires gradients "
            "since Prior(model) froze it, so the prior would change in training; train another "
            "copy of the model, or freeze this one again by prior.model.requires_grad_(False)"
        )


def check_base_is_pretrained(model: nn.Module, adapter: str | None) -> None:
    """Raise where a trainee without its adapters differs from the model before them."""
    for name, config in getattr(model, "peft_config", {}).items():
        if name == adapter:  # the prior uses it, and may use its base
            continue
        changed = changes_base(config)
        if changed is not None:
            raise ValueError(
                f"Prior.shared: the trainee's adapter {name!r} was made with {changed}, so the "
                "trainee without it is not the pretrained model; use LoRA with "
                "init_lora_weights=True (or 'gaussian', 'eva'), or load a separate prior with "
                "Prior.from_pretrained"
            )


def changes_base(config: Any) -> str | None:
    """The setting of a PEFT configuration that changes the base model; None: there is none."""
    kind = _kind(config)
    if kind not in _LEAVE_THE_BASE | _PROMPTS:
        return f"peft_type={kind}, which may change its base"
    if getattr(config, "layer_replication", None):
        return f"layer_replication={config.layer_replication!r}, which repeats layers of the base"
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _GENTLE_INITS:
        return f"init_lora_weights={init!r}, which takes a part of the base into the adapter"
    return None


def check_adapter_exists(model: nn.Module, adapter: str | None) -> None:
    """Raise where `model` has no adapter of that name."""
    names = adapter_names(model)
    if adapter is not None and adapter not in names:
        config = getattr(model, "peft_config", {}).get(adapter)
        if config is not None:
            raise ValueError(
                f"adapter {adapter!r} is of peft_type={_kind(config)}, which a shared prior can't "
                "switch on by itself; load a separate prior with Prior.from_pretrained"
            )
        raise ValueError(
            f"adapter {adapter!r} is not in the model, which has {sorted(names) or 'none'}; load "
            "it with model.load_adapter(path, adapter_name=..., is_trainable=False)"
        )


def check_adapter_is_inside(model: Any) -> None:
    """Raise where PEFT computes more than its layers do, which the trunk alone would leave out."""
    for name, config in getattr(model, "peft_config", {}).items():
        kind = _kind(config)
        if kind in _PROMPTS:
            raise ValueError(
                f"model: its adapter {name!r} is a learned prompt (peft_type={kind}), whose "
                "virtual tokens stand before each document, and a prior scores documents alone; "
                "pass the model without it (model.get_base_model()), or one tuned with LoRA"
            )
        if kind == "XLORA":
            raise ValueError(
                f"model: its adapter {name!r} mixes others by a pass of its own (peft_type=XLORA), "
                "which a prior does not make; pass a model with one LoRA adapter"
            )


def _kind(config: Any) -> str:
    kind = getattr(config, "peft_type", None)
    return str(getattr(kind, "value", kind))


def check_is_another_model(model: nn.Module, trainee: nn.Module) -> None:
    """Raise if a separate prior's model is the one in training."""
    if unwrap_model(model) is unwrap_model(trainee):
        raise ValueError(
            "the prior is the model in training, which Prior(model) has frozen; load a second copy "
            "of the weights for the prior, or train with LoRA and use Prior.shared(model)"
        )


def check_is_same_model(model: nn.Module, trainee: nn.Module) -> None:
    """Raise unless a shared prior's model is the one in training, whatever wraps it."""
    own = unwrap_model(model)
    if not any(module is own for module in trainee.modules()):
        raise ValueError(
            "Prior.shared was given another model than the one in training, so the weights are in "
            "memory twice (model_init, a copy, or a model that was loaded again). Share the model "
            "that the Trainer trains, Prior.shared(trainer.model); where it is made later, pass "
            "callbacks=[ToEditCallback(lambda model: ToEditCollator(Prior.shared(model)))]; or "
            "load a separate prior by Prior.from_pretrained"
        )
