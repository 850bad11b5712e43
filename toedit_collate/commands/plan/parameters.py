"""Exact counts of a model's weights, from a copy of it that has shapes and no memory."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import UnusableError, first_line
from ...prior.families import find_trunk
from .config import Lora


@dataclass(frozen=True)
class Target:
    """A matrix of the first layer that has an adapter, by its name within the layer."""

    name: str
    num_inputs: int
    num_outputs: int


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights.

    Attributes:
        total: all, adapters included; shared ones once.
        trainable: of these.
        body: in the layers, without adapters.
        linear: of these, in matrices: what is quantized, and cast to 16 bits by autocast.
        head: in the vocabulary projection, shared with the embeddings or not.
        head_is_tied: it is shared.
        trained_shapes: of each trained tensor.
        targets: of LoRA, in the first layer.
        trains_head: the vocabulary projection is trained.
    """

    total: int
    trainable: int
    body: int
    linear: int
    head: int
    head_is_tied: bool
    trained_shapes: tuple[tuple[int, ...], ...]
    targets: tuple[Target, ...]
    trains_head: bool

    @property
    def adapters(self) -> int:
        """Weights that LoRA adds or copies."""
        return self.trainable if self.targets else 0


def count_parameters(config: Any, lora: Lora | None = None) -> Parameters:
    """Count the weights of a model.

    Args:
        config: of transformers.
        lora: adapters to put on it; None: all weights are trained.

    Raises:
        UnusableError: no decoder-only model can be made of it, or LoRA does not fit it.
    """
    model = empty_model(config)
    try:
        layers = _layers(model)
    except (TypeError, ValueError) as error:
        raise UnusableError(f"a model of type {config.model_type}: {error}") from None
    weight = model.get_output_embeddings().weight
    body = sum(p.numel() for p in layers.parameters())
    linear = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
    tied = model.get_input_embeddings().weight is weight
    targets: tuple[Target, ...] = ()
    if lora is not None:
        model = with_adapters(model, lora)
        targets = tuple(_targets(layers[0]))
    trained = [p for p in model.parameters() if p.requires_grad]
    return Parameters(
        total=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in trained),
        body=body,
        linear=linear,
        head=weight.numel(),
        head_is_tied=tied,
        trained_shapes=tuple(tuple(p.shape) for p in trained),
        targets=targets,
        trains_head=any(p.requires_grad for p in model.get_output_embeddings().parameters()),
    )


def empty_model(config: Any) -> Any:
    """A model on the device "meta", in float32."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise UnusableError(
            f"a model of type {config.model_type} is no causal language model ({first_line(error)})"
        ) from None


def with_adapters(model: Any, lora: Lora, **options: Any) -> Any:
    """Put LoRA on a model, as TRL's recipes do.

    Args:
        model: is changed.
        lora: what to put on.
        options: of `get_peft_model`.

    Raises:
        UnusableError: peft is not installed, or finds nothing to put it on.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UnusableError(
            'use_peft: true needs peft; pip install "toedit_collate[recipes]"'
        ) from None
    config = LoraConfig(
        r=lora.rank,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else _as_list(lora.targets),
        modules_to_save=_as_list(lora.modules_to_save),
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings(), torch.device(next(model.parameters()).device):
            warnings.simplefilter("ignore")
            return get_peft_model(model, config, **options)
    except ValueError as error:
        raise UnusableError(f"lora_target_modules {lora.targets}: {first_line(error)}") from None


def _as_list(names: tuple[str, ...] | None) -> list[str] | None:
    return list(names) if names else None


def _layers(model: Any) -> nn.ModuleList:
    trunk = find_trunk(model)
    found = [m for m in trunk.children() if isinstance(m, nn.ModuleList) and len(m)]
    if len(found) != 1:
        raise ValueError("its layers are not one list, so that they can't be planned")
    return found[0]


def _targets(layer: nn.Module) -> list[Target]:
    """Matrices of a layer that have an adapter."""
    found = []
    for name, module in layer.named_modules():
        adapters = getattr(module, "lora_A", None)
        if isinstance(adapters, nn.ModuleDict) and len(adapters):
            down, up = (
                next(iter(getattr(module, side).values())).weight for side in ("lora_A", "lora_B")
            )
            found.append(Target(name, down.shape[1], up.shape[0]))
    return found
