"""Runs a prior's model with frozen weights, and checks that training does not change them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .adapters import Survey, adapter_layers, parameters_used, survey, unwrap_layer
from .families import unwrap_model

# Kinds of adapters that, switched off, leave the model as it was before them. Some others rewrite
# the base when they are put on it (OSF, say), or have no switch in their layers.
_LEAVE_THE_BASE = {
    "LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA", "FOURIERFT", "HRA", "VBLORA",
    "LN_TUNING", "RANDLORA", "SHIRA", "C3A", "MISS", "BONE", "TRAINABLE_TOKENS", "ROAD", "POLY",
    # Prompts are put before a model's input, and do not change the model.
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
    """Raise where training would change what a shared prior scores with, or has changed it."""
    if any(getattr(layer, "merged_adapters", None) for layer in adapter_layers(model)):
        raise ValueError(
            "Prior.shared: the trainee's adapter is merged into its base; call "
            "model.unmerge_adapter() first"
        )
    scored_with = {id(parameter) for parameter in parameters_used(unwrap_model(model), adapter)}
    stray = [n for n, p in model.named_parameters() if p.requires_grad and id(p) in scored_with]
    if stray:
        raise ValueError(
            f"Prior.shared: {stray[0]!r} (and {len(stray) - 1} more) is trained, but is part of "
            "what the prior scores with, so the prior would change in training; train with LoRA "
            "(peft_config=..., bias='none'), score with a frozen adapter, or load a separate prior "
            "with Prior.from_pretrained"
        )
    for name, config in getattr(model, "peft_config", {}).items():
        # The prior's own adapter may use its base.
        if name != adapter and (changed := changes_base(config)):
            raise ValueError(
                f"Prior.shared: the trainee's adapter {name!r} was made with {changed}, so the "
                "trainee without it is not the pretrained model; use LoRA with "
                "init_lora_weights=True (or 'gaussian', 'eva'), or load a separate prior with "
                "Prior.from_pretrained"
            )


def check_prior_is_frozen(model: nn.Module) -> None:
    """Raise where a separate prior's weights require gradients."""
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    if trainable:
        raise ValueError(
            f"the prior's {trainable[0]!r} (and {len(trainable) - 1} more) requires gradients "
            "since Prior(model) froze it, so the prior would change in training; train another "
            "copy of the model, or freeze this one again by prior.model.requires_grad_(False)"
        )


def changes_base(config: Any) -> str | None:
    """The setting of a PEFT configuration that changes the base model; None: there is none."""
    kind = _kind(config)
    if kind not in _LEAVE_THE_BASE:
        return f"peft_type={kind}, which may change its base"
    if getattr(config, "layer_replication", None):
        return f"layer_replication={config.layer_replication!r}, which repeats layers of the base"
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _GENTLE_INITS:
        return f"init_lora_weights={init!r}, which takes a part of the base into the adapter"
    return None


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
            "memory twice; share the model that the Trainer trains, Prior.shared(trainer.model), "
            "also by callbacks=[ToEditCallback(lambda model: ToEditCollator(Prior.shared(model)))] "
            "where it is made later; or load a separate prior by Prior.from_pretrained"
        )
