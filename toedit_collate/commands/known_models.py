"""Sizes of models that recipes name, so that `toedit plan` needs neither a download nor a licence.

Instruct models have the sizes of their base models.
"""

from __future__ import annotations

from typing import Any

from ..data.demo_model import SHAPE
from ..data.demo_text import DEMO_MODELS

_FIELDS = (
    "model_type", "dtype", "vocab_size", "max_position_embeddings", "num_hidden_layers",
    "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "tie_word_embeddings",
)  # fmt: skip
# `dtype` is that of the published weights.
_SIZES = {
    "meta-llama/meta-llama-3-8b":
        ("llama", "bfloat16", 128256, 8192, 32, 4096, 32, 8, 14336, False),
    "meta-llama/meta-llama-3-70b":
        ("llama", "bfloat16", 128256, 8192, 80, 8192, 64, 8, 28672, False),
    "meta-llama/llama-3.2-1b": ("llama", "bfloat16", 128256, 8192, 16, 2048, 32, 8, 8192, True),
    "allenai/olmo-1b-hf": ("olmo", "float32", 50304, 2048, 16, 2048, 16, 16, 8192, True),
    "allenai/olmo-7b-hf": ("olmo", "float32", 50304, 2048, 32, 4096, 32, 32, 11008, False),
    "qwen/qwen2.5-0.5b": ("qwen2", "bfloat16", 151936, 32768, 24, 896, 14, 2, 4864, True),
    "qwen/qwen2.5-7b": ("qwen2", "bfloat16", 152064, 32768, 28, 3584, 28, 4, 18944, False),
    "openai-community/gpt2": ("gpt2", "float32", 50257, 1024, 12, 768, 12, 12, None, True),
    "openai-community/gpt2-medium": ("gpt2", "float32", 50257, 1024, 24, 1024, 16, 16, None, True),
    "openai-community/gpt2-large": ("gpt2", "float32", 50257, 1024, 36, 1280, 20, 20, None, True),
    "openai-community/gpt2-xl": ("gpt2", "float32", 50257, 1024, 48, 1600, 25, 25, None, True),
}  # fmt: skip
# Hub id in lower case -> fields of its config.
KNOWN_MODELS: dict[str, dict[str, Any]] = {
    name: dict(zip(_FIELDS, sizes, strict=True)) for name, sizes in _SIZES.items()
}
for _name, _size in DEMO_MODELS.items():
    KNOWN_MODELS[_name] = {**SHAPE, "model_type": "llama", "dtype": "float32", "vocab_size": _size}
