"""What the model families of transformers do between the last hidden state and the logits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from ..head.projection import Head
from .adapters import unwrap_layer

# Factors and caps of the logits, by the name of the config's field. `Prior` checks the result
# against the model's own logits, so a family that is missing here is refused, never mis-scored.
_SCALES = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
# In this family, the name of a divisor is used for a factor.
_MULTIPLIES = "hyperclovax"
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def unwrap_model(model: Any) -> Any:
    """The transformers model inside wrappers of torch.compile, DDP and PEFT."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
            model = model.get_base_model()
        elif isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        else:
            return model


def find_trunk(model: Any) -> Any:
    """The model without its vocabulary projection.

    Raises:
        TypeError: `model` is not a causal language model of transformers.
    """
    trunk = head = None
    if isinstance(model, nn.Module):
        trunk = getattr(model, "base_model", None)
        head = getattr(model, "get_output_embeddings", lambda: None)()
    if trunk is model and head is not None:
        # The class names another trunk than the model has (Llama 4).
        trunk = getattr(model, "model", None)
    if trunk is None or trunk is model or head is None:
        raise TypeError(
            "model must be a causal language model of transformers with a vocabulary projection, "
            f"got {type(model).__name__}; load one with AutoModelForCausalLM.from_pretrained(...)"
        )
    return trunk


def find_head(model: Any, adapters: str | Collection[str] | None = None) -> Head:
    """The vocabulary projection of `model` with only some adapters on, or with none."""
    module = unwrap_layer(model.get_output_embeddings(), adapters)
    if module is None:
        raise ValueError(
            f"adapter {adapters!r} changes the vocabulary projection, which a prior can't score "
            "with; leave lm_head (and embeddings that are tied to it) out of target_modules and "
            "trainable_token_indices, or merge the adapter by merge_and_unload()"
        )
    weight: Any = getattr(module, "weight", None)
    if not is_plain(weight):
        raise ValueError(
            f"model: the vocabulary projection of {type(model).__name__} is a "
            f"{type(module).__name__} without a plain weight (quantised, offloaded, or of several "
            "tokens at once), which a prior can't score with; load the model so that its lm_head "
            "is in 16 or 32 bits and on a device"
        )
    config = model.config.get_text_config()
    scale = 1.0
    for name in _SCALES:
        scale *= float(getattr(config, name, None) or 1.0)
    for name in _DIVISORS:
        factor = float(getattr(config, name, None) or 1.0)
        scale *= factor if str(config.model_type).startswith(_MULTIPLIES) else 1 / factor
    softcap = next((c for name in _CAPS if (c := getattr(config, name, None))), None)
    return Head(
        weight=weight,
        bias=getattr(module, "bias", None),
        scale=scale,
        softcap=None if softcap is None else float(softcap),
    )


def is_plain(weight: Any) -> bool:
    """Whether a weight is a tensor of numbers, maybe sharded: not quantised and not offloaded."""
    is_tensor = type(weight).__name__ in ("Parameter", "Tensor", "DTensor")
    return is_tensor and weight.is_floating_point() and not weight.is_meta


def max_positions(config: Any) -> int | None:
    """The longest document that the model was built for; None: no limit."""
    config = config.get_text_config()
    for name in _POSITIONS:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def pad_id(*holders: Any) -> int:
    """The id to pad rows with: the first that a tokenizer or configuration has; else 0."""
    names = ("pad_token_id", "eos_token_id")
    found = (getattr(holder, name, None) for holder in holders for name in names)
    return next((one for one in found if isinstance(one, int) and one >= 0), 0)
