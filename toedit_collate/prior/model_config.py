"""What a model's configuration decides about its scores, and what of it is bookkeeping."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")

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

# Fields of an adapter's configuration that the function it computes does not depend on, or that
# the names and shapes of its weights tell.
_ADAPTER_BOOKKEEPING = {
    "base_model_name_or_path", "revision", "inference_mode", "task_type", "auto_mapping",
    "peft_version", "lora_dropout", "dropout", "init_lora_weights", "init_weights", "eva_config",
    "corda_config", "loftq_config", "lora_ga_config", "runtime_config", "modules_to_save",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core",
    "megatron_config", "ensure_weight_tying", "qalora_group_size", "bias",
}  # fmt: skip


def max_positions(config: Any) -> int | None:
    """The longest document that the model was built for, or None where it has no limit."""
    config = config.get_text_config()
    for name in _POSITIONS:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def deciding_config(config: Any) -> dict[str, Any]:
    """The fields of a model's configuration on which its scores may depend, as JSON."""
    record = config.get_text_config().to_dict()
    return _plain(
        {
            name: value
            for name, value in record.items()
            if name not in _BOOKKEEPING and not any(part in name for part in _BOOKKEEPING_PARTS)
        }
    )


def deciding_adapter_config(config: Any) -> dict[str, Any]:
    """The fields of an adapter's configuration on which what it computes may depend, as JSON."""
    if dataclasses.is_dataclass(config):
        record = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    else:
        record = dict(config.to_dict())
    return _plain({n: v for n, v in record.items() if n not in _ADAPTER_BOOKKEEPING})


def differences(here: dict[str, Any], there: dict[str, Any], most: int = 3) -> str:
    """The fields in which two records differ: "a=1, there 2; ..."; "" where they are the same.

    A field that one of them lacks and the other has empty is the same.
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
        return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)

    return json.loads(json.dumps(record, default=as_text, sort_keys=True))


def pad_id(config: Any, tokenizer: Any) -> int:
    """The id to pad rows with: the tokenizer's, else the model's, else 0."""
    for holder in (tokenizer, config.get_text_config()):
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and value >= 0:
                return value
    return 0
