"""Sizes of well-known models, so that `toedit plan` needs neither a download nor a licence."""

from __future__ import annotations

from typing import Any

from ..data.demo_model import SHAPE
from ..data.demo_text import DEMO_MODELS


def _sizes(
    model_type: str, dtype: str, vocab_size: int, max_position_embeddings: int, layers: int,
    width: int, heads: int, inner: int | None = None, **others: Any,
) -> dict[str, Any]:  # fmt: skip
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    return {
        "model_type": model_type, "dtype": dtype, "vocab_size": vocab_size,
        "max_position_embeddings": max_position_embeddings,
        **dict(zip(names, (layers, width, heads, inner), strict=True)), **others,
    }  # fmt: skip


def _llama3(layers: int, width: int, heads: int, inner: int, **others: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    return _sizes(
        "llama", "bfloat16", 128256, 8192, layers, width, heads, inner, num_key_value_heads=8,
        rope_parameters=rope, **others,
    )  # fmt: skip


def _qwen25(vocab_size: int, *shape: int, tied: bool, kv_heads: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    return _sizes(
        "qwen2", "bfloat16", vocab_size, 32768, *shape, tie_word_embeddings=tied,
        num_key_value_heads=kv_heads, rope_parameters=rope,
    )  # fmt: skip


def _gpt2(layers: int, width: int, heads: int) -> dict[str, Any]:
    return _sizes("gpt2", "float32", 50257, 1024, layers, width, heads)


_LLAMA3_8B = _llama3(32, 4096, 32, 14336, tie_word_embeddings=False)
_LLAMA3_1B = _llama3(16, 2048, 32, 8192, tie_word_embeddings=True, head_dim=64)
_LLAMA3_70B = _llama3(80, 8192, 64, 28672, tie_word_embeddings=False)
_QWEN25_500M = _qwen25(151936, 24, 896, 14, 4864, tied=True, kv_heads=2)
_QWEN25_7B = _qwen25(152064, 28, 3584, 28, 18944, tied=False, kv_heads=4)
# Hub id in lower case -> fields of its config. `dtype` is that of the published weights.
KNOWN_MODELS: dict[str, dict[str, Any]] = {
    "meta-llama/meta-llama-3-8b": _LLAMA3_8B,
    "meta-llama/meta-llama-3-8b-instruct": _LLAMA3_8B,
    "meta-llama/meta-llama-3-70b": _LLAMA3_70B,
    "meta-llama/meta-llama-3-70b-instruct": _LLAMA3_70B,
    "meta-llama/llama-3.1-8b": _LLAMA3_8B,
    "meta-llama/llama-3.1-8b-instruct": _LLAMA3_8B,
    "meta-llama/llama-3.2-1b": _LLAMA3_1B,
    "meta-llama/llama-3.2-1b-instruct": _LLAMA3_1B,
    "allenai/olmo-1b-hf": _sizes(
        "olmo", "float32", 50304, 2048, 16, 2048, 16, 8192, tie_word_embeddings=True
    ),
    "allenai/olmo-7b-hf": _sizes(
        "olmo", "float32", 50304, 2048, 32, 4096, 32, 11008, tie_word_embeddings=False
    ),
    "qwen/qwen2.5-0.5b": _QWEN25_500M,
    "qwen/qwen2.5-0.5b-instruct": _QWEN25_500M,
    "qwen/qwen2.5-7b": _QWEN25_7B,
    "qwen/qwen2.5-7b-instruct": _QWEN25_7B,
    "openai-community/gpt2": _gpt2(12, 768, 12),
    "openai-community/gpt2-medium": _gpt2(24, 1024, 16),
    "openai-community/gpt2-large": _gpt2(36, 1280, 20),
    "openai-community/gpt2-xl": _gpt2(48, 1600, 25),
    **{
        name: {"model_type": "llama", **SHAPE, "vocab_size": size, "dtype": "float32"}
        for name, size in DEMO_MODELS.items()
    },
}  # fmt: skip
