"""The shape of a model's layers, as far as their activations depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_KINDS = {  # norm, MLP
    "llama": ("rms", "gated"),
    "mistral": ("rms", "gated"),
    "qwen2": ("rms", "gated"),
    "olmo": ("plain", "gated"),
    "gpt2": ("layer", "gelu_new"),
}
"""Families whose formula was compared with what PyTorch saves."""


@dataclass(frozen=True)
class Layers:
    """A stack of equal layers.

    Attributes:
        D: width.
        F: width within the MLP.
        H: heads.
        K: heads of keys and values.
        d: width of a head.
        L: number of layers.
        V: size of the vocabulary.
        norm: "rms" (with a weight), "plain" (without) or "layer" (LayerNorm).
        mlp: "gated" (SiLU) or "gelu_new" (by tanh, one operation after another).
        dropout: on what attention and MLP add (GPT-2).
        is_known: the family's formula was checked; else it is taken to be like Llama.
    """

    D: int
    F: int
    H: int
    K: int
    d: int
    L: int
    V: int
    norm: str
    mlp: str
    dropout: float
    is_known: bool


def layers_of(config: Any) -> Layers:
    """Read them from a config of transformers."""
    config = config.get_text_config()
    D, H = config.hidden_size, config.num_attention_heads
    norm, mlp = _KINDS.get(config.model_type, ("rms", "gated"))
    return Layers(
        D=D,
        F=getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * D,
        H=H,
        K=getattr(config, "num_key_value_heads", None) or H,
        d=getattr(config, "head_dim", None) or D // H,
        L=config.num_hidden_layers,
        V=config.vocab_size,
        norm=norm,
        mlp=mlp,
        dropout=getattr(config, "resid_pdrop", 0.0),
        is_known=config.model_type in _KINDS,
    )
