"""A prior's fingerprint: of everything that decides its scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import adapter_layers, parameters_used
from .families import unwrap_model
from .model_config import deciding_adapter_config, deciding_config
from .sharding import class_name, full_tensor

# Where a weight can't be added up as whole numbers, a fingerprint looks at so many of its values.
NUM_SAMPLES = 64

# Whole numbers of the size of a value, in bytes.
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(model: nn.Module, adapters: list[str]) -> str:
    """Tells priors apart that score otherwise: 32 hex digits, the same on any device.

    Of the configuration (rotary positions, windows, scales, epsilons, ...), the scaling of the
    adapters that are on, how weights are quantised, and all weights and buffers that a checkpoint
    holds. With weights sharded over ranks, a collective.

    Args:
        model: of the prior.
        adapters: those that are on.
    """
    lm: Any = unwrap_model(model)
    held = getattr(model, "peft_config", {})
    record = {
        "model": class_name(lm),
        "config": deciding_config(lm.config),
        "quantization": _quantization(lm.config),
        "adapters": [deciding_adapter_config(held[n]) for n in adapters if n in held],
        "scaling": _scalings(model, adapters),
    }
    if getattr(lm.config.get_text_config(), "attn_logit_softcapping", None):
        # Some attention functions can't cap logits, and leave it out.
        record["attention"] = lm.config._attn_implementation
    digest = hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode())
    for tensor in [*parameters_used(model, adapters), *_saved_buffers(lm)]:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_summary(full_tensor(tensor).detach()))
    return digest.hexdigest()[:32]


def _summary(values: Tensor) -> bytes:
    """A few bytes that change with any one of the values."""
    if hasattr(values, "__tensor_flatten__"):  # a quantized one: of what it is made of
        names, _ = values.__tensor_flatten__()
        return b"".join(_summary(getattr(values, name)) for name in names)
    plain = type(values).__name__ in ("Parameter", "Tensor") and values.element_size() in _WHOLE
    if plain and values.numel() and not values.is_complex():
        bits = values.contiguous().view(_WHOLE[values.element_size()])
        # Sums of whole numbers, which no device rounds; by rows, so that their order counts.
        rows = bits.flatten(1) if bits.dim() > 1 else bits.view(-1, 1)
        return rows.sum(-1, dtype=torch.int64).cpu().numpy().tobytes() + _sample(values)
    return _sample(values)


def _sample(values: Tensor) -> bytes:
    values = values.flatten()
    count = min(len(values), NUM_SAMPLES)
    # In whole numbers, which no device rounds.
    places = torch.arange(count, device=values.device) * (len(values) - 1)
    sample = values[places // max(count - 1, 1)].cpu().contiguous()
    return sample.view(torch.uint8).numpy().tobytes()


def _saved_buffers(lm: nn.Module) -> Iterable[Tensor]:
    """Buffers that are part of a checkpoint; others follow from the configuration."""
    for module in lm.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield buffer


def _scalings(model: nn.Module, adapters: list[str]) -> list[Any]:
    """What the layers of the adapters that are on multiply them by, in order."""
    found: list[list[float]] = []
    for layer in adapter_layers(model):
        scaling = getattr(layer, "scaling", None)
        if isinstance(scaling, dict):
            found.extend([float(scaling[name])] for name in adapters if name in scaling)
    return found


def _quantization(config: Any) -> str:
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return ""
    record = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return json.dumps(record, sort_keys=True, default=str)
