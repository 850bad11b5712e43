"""Random weights in the sizes of real models, made on the device, in the dtype."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from ...errors import UnusableError
from .machine import available_bytes, gib

# As the configs on the hub have them; "tiny" is about the size of a prior that a CPU can train.
SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": False,
    },
    "olmo-1b": {
        "model_type": "olmo",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "intermediate_size": 8192,
        "vocab_size": 50304,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "tie_word_embeddings": True,
    },
    "tiny": {
        "model_type": "llama",
        "hidden_size": 320,
        "num_hidden_layers": 6,
        "num_attention_heads": 5,
        "intermediate_size": 1024,
        "vocab_size": 8192,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
}


def random_model(shape: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """A causal language model of one of `SHAPES`, with random weights.

    Raises:
        UnusableError: it does not fit into the memory that is free.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(SHAPES[shape])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):  # costs nothing; counts the weights
        empty = AutoModelForCausalLM.from_config(config, dtype=dtype)
    needed = sum(p.numel() * p.element_size() for p in empty.parameters())
    if needed > available_bytes(device):
        raise UnusableError(
            f"--shape {shape}: its weights take {gib(needed)} in {str(dtype).split('.')[-1]}, and "
            f"{gib(available_bytes(device))} are free on {device}; choose a smaller shape"
        )
    torch.manual_seed(seed)
    with torch.device(device):
        return cast(nn.Module, AutoModelForCausalLM.from_config(config, dtype=dtype))
