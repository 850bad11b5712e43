"""Bytes that autograd keeps for the backward pass, by formula.

The formulas list what each operation of transformers' layers saves. They were compared with what
PyTorch does save on a CPU (`torch.autograd.graph.saved_tensors_hooks`; test_plan.py). What a
GPU does otherwise was read, not measured: dropout masks of one byte instead of the dtype's, and
`pow`, and with it GPT-2's GELU, in float32 under autocast.

All figures are bytes per token, B = rows, T = tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from .layers import Layers
from .parameters import Target

_FP32 = 4


@dataclass(frozen=True)
class Setting:
    """How a layer is trained.

    Attributes:
        residual: bytes of an element between layers.
        compute: of an element in matrix products.
        autocast: products are cast to 16 bits.
        trains_body: the layers' own weights are trained.
        targets: matrices with an adapter.
        rank: of the adapters.
        dropout: theirs is above 0.
        adapter: bytes of an element of theirs.
        casts_to_adapter: peft casts inputs to the adapters' dtype (not on a quantized base).
        mask_length: tokens that a row of the attention mask has; 0: there is none.
        eager: attention builds its probabilities.
        on_gpu: else a CPU.
    """

    residual: int
    compute: int
    autocast: bool
    trains_body: bool = True
    targets: tuple[Target, ...] = ()
    rank: int = 0
    dropout: bool = False
    adapter: int = 4
    casts_to_adapter: bool = True
    mask_length: int = 0
    eager: bool = False
    on_gpu: bool = True


def layer_bytes(layers: Layers, how: Setting) -> dict[str, float]:
    """What one layer saves for a token, without checkpointing, by part."""
    heads, keys = layers.H * layers.d, layers.K * layers.d
    if how.mask_length or how.eager:
        keys = heads  # transformers repeats keys and values, for kernels that take a mask
    attention = (2 * heads + 2 * keys) * how.compute + _FP32 * layers.H  # q, k, v, output, lse
    attention += how.mask_length * how.compute  # as an additive one, made anew in each layer
    if how.eager:
        attention += how.mask_length * layers.H * (_FP32 + how.compute)  # softmax, and its copy
    return {
        "norms": 2 * norm_bytes(layers, how),
        "attention": attention,
        "mlp": _mlp_bytes(layers, how),
        "inputs": _input_bytes(layers, how),
        "adapters": _adapter_bytes(layers, how),
        "dropout": 2 * layers.D * _mask_bytes(how, how.compute) if layers.dropout else 0,
    }


def norm_bytes(layers: Layers, how: Setting) -> float:
    """What a norm saves: its input in float32, statistics, and for a weight what it multiplies."""
    if layers.norm == "layer":
        in_fp32 = how.autocast and how.on_gpu  # a CPU's autocast leaves layer_norm as it is
        return layers.D * (_FP32 if in_fp32 else how.residual) + 2 * _FP32
    if layers.norm == "plain":
        return layers.D * _FP32 + 2 * _FP32
    return layers.D * _FP32 + _FP32 + (layers.D * how.residual if how.trains_body else 0)


def final_bytes(layers: Layers, how: Setting) -> float:
    """What is saved around the layers: by the last norm, and for dropout of the embeddings."""
    masks = layers.D * _mask_bytes(how, how.residual) if layers.dropout else 0
    return norm_bytes(layers, how) + masks


def input_bytes(layers: Layers, how: Setting) -> float:
    """What a checkpointed layer keeps."""
    return layers.D * how.residual


def _mlp_bytes(layers: Layers, how: Setting) -> float:
    """Without the input of the last product, which `_input_bytes` counts."""
    if layers.mlp == "gated":
        return 3 * layers.F * how.compute  # gate, its SiLU, up
    if how.autocast and how.on_gpu:
        return layers.F * (3 * _FP32 + how.compute)  # x, tanh and 1 + tanh; 0.5 x
    return 4 * layers.F * how.compute


def _input_bytes(layers: Layers, how: Setting) -> float:
    """Inputs of matrix products whose weights are trained; attention keeps that of the last."""
    if not how.trains_body:
        return 0.0
    products = (3, 2) if layers.mlp == "gated" else (1, 1)  # q, k, v; gate, up
    casts = how.autocast and how.residual > how.compute
    copies = sum(products) if casts else 2  # a cast is made anew for each product
    return (copies * layers.D + layers.F) * how.compute


def _adapter_bytes(layers: Layers, how: Setting) -> float:
    """Inputs of adapters, what lies between their two matrices, and dropout masks."""
    if not how.targets:
        return 0.0
    kept = how.compute if how.autocast else how.adapter
    own_copies = how.dropout or (how.casts_to_adapter and how.adapter != how.compute)
    total = float(len(how.targets) * how.rank * kept)
    if own_copies:
        total += sum(t.num_inputs for t in how.targets) * kept
    else:
        shared = {_input_of(t): t.num_inputs for t in how.targets}
        shared.pop("attention's output", None)
        total += sum(shared.values()) * kept
    if how.dropout:
        element = how.adapter if how.casts_to_adapter else how.compute
        total += sum(t.num_inputs for t in how.targets) * _mask_bytes(how, element)
    return total


def _mask_bytes(how: Setting, element: int) -> int:
    return 1 if how.on_gpu else element


def _input_of(target: Target) -> str:
    """What a matrix multiplies; equal for those that share it."""
    name = target.name.rpartition(".")[2]
    if name in ("q_proj", "k_proj", "v_proj", "c_attn"):
        return "attention's input"
    if name in ("gate_proj", "up_proj", "c_fc"):
        return "MLP's input"
    if name == "o_proj" or target.name == "attn.c_proj":
        return "attention's output"
    return target.name


def backward_bytes(layers: Layers, how: Setting) -> float:
    """What the backward pass of a layer has in use beside what was saved.

    Gradients of the MLP's inner values, and of the residual stream; measured on a CPU as the peak
    of a step less what was saved, for widths F of 3 to 4 times D.
    """
    total = 2 * layers.F * how.compute + 2.5 * layers.D * how.residual
    if how.targets and how.casts_to_adapter and how.adapter > how.compute:
        total += layers.F * how.adapter  # the cast input of the last adapter
    return total


def forward_bytes(layers: Layers, how: Setting) -> float:
    """What a layer has in use where nothing is saved: the edit pass."""
    inner = 3 if layers.mlp == "gated" else 4
    return 3 * layers.D * how.residual + (inner * layers.F + layers.D) * how.compute
