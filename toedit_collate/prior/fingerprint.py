"""A prior's fingerprint: of everything that decides its scores."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import adapter_layers, parameters_used
from .families import unwrap_model
from .sharding import full_tensor

# Integer types by their size in bytes.
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# Fields of a model's configuration that scores do not depend on: where it came from, how it was
# trained, how text is generated with it, what it returns. All others count.
_BOOKKEEPING = {
    "_name_or_path", "name_or_path", "architectures", "transformers_version", "torch_dtype",
    "dtype", "use_cache", "return_dict", "output_attentions", "output_hidden_states",
    "output_router_logits", "problem_type", "finetuning_task", "task_specific_params", "id2label",
    "label2id", "auto_map", "torchscript", "gradient_checkpointing", "pretraining_tp",
    "use_return_dict", "tokenizer_class", "prefix", "_commit_hash", "_attn_implementation",
    "_attn_implementation_internal", "_experts_implementation", "_experts_implementation_internal",
    "_attn_implementation_autoset", "attn_implementation", "quantization_config", "model_type_name",
    "router_aux_loss_coef", "z_loss_coefficient", "chunk_size_feed_forward", "tf_legacy_loss",
    "unsloth_version", "unsloth_fixed", "use_bfloat16", "is_encoder_decoder", "layer_types_version",
}  # fmt: skip
_BOOKKEEPING_PARTS = ("dropout", "pdrop", "initializer", "init_std", "token_id", "summary_")

# Fields of an adapter's configuration that do not change what it computes, or that follow from the
# names and shapes of its weights.
_ADAPTER_BOOKKEEPING = {
    "base_model_name_or_path", "revision", "inference_mode", "task_type", "auto_mapping",
    "peft_version", "lora_dropout", "dropout", "init_lora_weights", "init_weights", "eva_config",
    "corda_config", "loftq_config", "lora_ga_config", "runtime_config", "modules_to_save",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core",
    "megatron_config", "ensure_weight_tying", "qalora_group_size", "bias",
}  # fmt: skip


def fingerprint(model: nn.Module, adapters: list[str]) -> str:
    """A hash that differs between priors whose scores differ: 32 hex digits.

    It covers the configuration (rotary positions, windows, scales, ...), the scaling of the
    `adapters` that are on, the quantization, and all weights and buffers that a checkpoint holds.
    It is the same on any device. With weights sharded over ranks, a collective.
    """
    lm: Any = unwrap_model(model)
    held = getattr(model, "peft_config", {})
    record = {
        # Without the class that FSDP2 derives from a model's.
        "model": type(lm).__name__.removeprefix("FSDP"),
        "config": deciding_config(lm.config),
        "quantization": getattr(lm.config, "quantization_config", None),
        "adapters": [deciding_adapter_config(held[n]) for n in adapters if n in held],
        "scaling": [
            [float(layer.scaling[name])]
            for layer in adapter_layers(model)
            for name in adapters
            if isinstance(getattr(layer, "scaling", None), dict) and name in layer.scaling
        ],
    }
    if getattr(lm.config.get_text_config(), "attn_logit_softcapping", None):
        # Some attention functions ignore the cap.
        record["attention"] = lm.config._attn_implementation
    digest = hashlib.sha256(json.dumps(_plain(record)).encode())
    saved = set(lm.state_dict())  # other buffers follow from the configuration
    buffers = [buffer for name, buffer in lm.named_buffers() if name in saved]
    for tensor in [*parameters_used(model, adapters), *buffers]:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_summary(full_tensor(tensor).detach()))
    return digest.hexdigest()[:32]


def _summary(values: Tensor) -> bytes:
    """A few bytes that change with any one of the values."""
    if hasattr(values, "__tensor_flatten__"):  # a quantised tensor: its parts
        names, _ = values.__tensor_flatten__()
        return b"".join(_summary(getattr(values, name)) for name in names)
    bits = values.contiguous().view(_WHOLE[values.element_size()])
    # Sums of integers, which no device rounds; by rows, so that their order counts.
    rows = bits.flatten(1) if bits.dim() > 1 else bits.view(-1, 1)
    return rows.sum(-1, dtype=torch.int64).cpu().numpy().tobytes()


def deciding_config(config: Any) -> dict[str, Any]:
    """The fields of a model's configuration on which its scores may depend, as JSON."""
    record = config.get_text_config().to_dict()
    ignored = (n for n in record if n in _BOOKKEEPING or any(p in n for p in _BOOKKEEPING_PARTS))
    return _plain({name: record[name] for name in record.keys() - set(ignored)})


def deciding_adapter_config(config: Any) -> dict[str, Any]:
    """The fields of an adapter's configuration on which its output may depend, as JSON."""
    return _plain({n: v for n, v in config.to_dict().items() if n not in _ADAPTER_BOOKKEEPING})


def differences(here: dict[str, Any], there: dict[str, Any], most: int = 3) -> str:
    """The fields in which two records differ: "a=1, there 2; ..."; "" where they are equal.

    A field that one of them lacks and that is empty in the other is equal.
    """
    names = sorted(
        name
        for name in {*here, *there}
        if here.get(name) != there.get(name) and (here.get(name) or there.get(name))
    )
    shown = [f"{name}={here.get(name)!r}, there {there.get(name)!r}" for name in names[:most]]
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return "; ".join(shown + more)


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    def as_text(value: Any) -> Any:
        if hasattr(value, "to_dict"):
            return value.to_dict()
        return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)

    return json.loads(json.dumps(record, default=as_text, sort_keys=True))
