"""Configs of models: those that are known here need neither a download nor a licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...data.demo_model import SHAPE
from ...data.demo_text import DEMO_MODELS
from ...errors import UnusableError, first_line
from ..measuring.shapes import SHAPES

_LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}
_OLMO_7B = {
    **SHAPES["olmo-1b"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "tie_word_embeddings": False,
}
# The one that the tiny recipes make; its vocabulary may turn out a bit smaller.
_DEMO = {"model_type": "llama", **SHAPE}


def _gpt2(num_layers: int, width: int, num_heads: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_layer": num_layers, "n_embd": width, "n_head": num_heads}


# Hub id, in lower case -> config, and the dtype of the published weights.
_KNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "meta-llama/meta-llama-3-8b": (SHAPES["llama3-8b"], "bfloat16"),
    "meta-llama/meta-llama-3-8b-instruct": (SHAPES["llama3-8b"], "bfloat16"),
    "meta-llama/llama-3.1-8b": (SHAPES["llama3-8b"], "bfloat16"),
    "meta-llama/llama-3.1-8b-instruct": (SHAPES["llama3-8b"], "bfloat16"),
    "meta-llama/llama-3.2-1b": (_LLAMA_1B, "bfloat16"),
    "meta-llama/llama-3.2-1b-instruct": (_LLAMA_1B, "bfloat16"),
    "allenai/olmo-1b-hf": (SHAPES["olmo-1b"], "float32"),
    "allenai/olmo-7b-hf": (_OLMO_7B, "float32"),
    "qwen/qwen2.5-0.5b": (SHAPES["qwen2.5-0.5b"], "bfloat16"),
    "openai-community/gpt2": (_gpt2(12, 768, 12), "float32"),
    "openai-community/gpt2-medium": (_gpt2(24, 1024, 16), "float32"),
    "openai-community/gpt2-large": (_gpt2(36, 1280, 20), "float32"),
    "openai-community/gpt2-xl": (_gpt2(48, 1600, 25), "float32"),
    **{name: ({**_DEMO, "vocab_size": size}, "float32") for name, size in DEMO_MODELS.items()},
}


def find_config(name: str, overrides: dict[str, Any], *, field: str) -> Any:
    """The config of a model, with its published dtype.

    Args:
        name: folder or hub id; a folder goes first.
        overrides: values to change.
        field: of the recipe's config that names it, for the error.

    Raises:
        UnusableError: it is not known here, and can't be read either.
    """
    from transformers import AutoConfig

    known = None if Path(name).is_dir() else _KNOWN.get(name.lower())
    if known is None:
        try:
            return AutoConfig.from_pretrained(name, **overrides)
        except (OSError, ValueError, KeyError) as error:
            raise UnusableError(
                f"{field} {name}: it is not among the models known here, and its config can't be "
                f"read ({first_line(error)}); name a folder with a config.json, or log in to the "
                "hub if it is gated"
            ) from None
    settings, dtype = dict(known[0]), known[1]
    model_type = settings.pop("model_type")
    renamed = AutoConfig.for_model(model_type).attribute_map  # num_hidden_layers -> n_layer
    settings |= {renamed.get(key, key): value for key, value in overrides.items()}
    try:
        return AutoConfig.for_model(model_type, dtype=dtype, **settings)
    except Exception as error:  # of another class for each value that can be wrong
        raise UnusableError(
            f"config_overrides {overrides}: {name} can't be changed so ({first_line(error)})"
        ) from None
