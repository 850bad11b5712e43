"""Counts the memory and the operations of one training step on PyTorch's meta device.

Tensors on the meta device have a shape and a dtype, but no data. A forward and a backward pass of
the real model, of any family, show in seconds what a step allocates and computes. Autocast and
fused attention are those of a GPU.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from ..prior.families import find_trunk, unwrap_model

# TRL's fused head (trl.kernels.chunked_logprob): tokens and ids of one tile of logits.
_LOSS_TILE_TOKENS, _LOSS_TILE_IDS = 4096, 32768
# CUDA's autocast computes these in 16 bits, and these in float32.
_IN_16_BITS = {
    F.linear, F.conv1d, F.scaled_dot_product_attention, torch.addmm, torch.baddbmm, torch.bmm,
    torch.einsum, torch.matmul, torch.mm, Tensor.bmm, Tensor.matmul, Tensor.mm, Tensor.__matmul__,
}  # fmt: skip
_IN_FLOAT32 = {
    F.cross_entropy, F.layer_norm, F.log_softmax, F.nll_loss, F.softmax, F.softplus,
    torch.exp, torch.log_softmax, torch.pow, torch.rsqrt, torch.softmax, Tensor.exp, Tensor.pow,
    Tensor.softmax, Tensor.__pow__, Tensor.rsqrt,
}  # fmt: skip


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made in this mode and are still alive.

    Tensors that share memory count once. Memory that an operation frees before it returns does not
    count. Works on a CPU and on the meta device.

    Attributes:
        live: bytes alive now.
        peak: the most bytes that were alive at once.

    Example:
        >>> import torch
        >>> with LiveMemory() as memory:
        ...     _ = torch.zeros(1024).float().sum()
        >>> memory.peak
        4100
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in self._storages((args, kwargs)):
            self._follow(storage, 0)  # an unknown argument was made before the mode
        result = func(*args, **(kwargs or {}))
        for storage in self._storages(result):
            self._follow(storage, storage.nbytes())
        return result

    def _follow(self, storage: Any, num_bytes: int) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.live += num_bytes
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live -= num_bytes

    @staticmethod
    def _storages(tree: Any) -> list[Any]:
        return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Counted(NamedTuple):
    """One pass or one step.

    Attributes:
        peak: bytes in use at once, without weights, gradients of weights, and optimizer.
        flops: operations; a multiplication and an addition are two.
    """

    peak: int
    flops: int


def count_forward(model: Any, B: int, T: int) -> Counted:
    """One pass of a frozen prior's backbone over (B, T) tokens, without the head."""
    trunk = find_trunk(unwrap_model(model))
    flops, memory = _flop_counter(), LiveMemory()
    with _on_meta(), flops, memory, torch.no_grad():
        trunk(input_ids=torch.empty(B, T, dtype=torch.int64, device="meta"), use_cache=False)
    return Counted(memory.peak, flops.get_total_flops())


def count_training(
    model: Any, B: int, T: int, *, autocast: bool = False, checkpointing: bool = False,
    with_mask: bool = False,
) -> Counted:  # fmt: skip
    """Forward and backward pass of a batch, with TRL's loss, which never builds all logits.

    Args:
        model: on the meta device, with its adapters; is put in training mode.
        B: rows of the batch.
        T: tokens of a row.
        autocast: to bfloat16.
        checkpointing: gradient checkpointing.
        with_mask: whether attention has a mask of all pairs of tokens. Else it is causal.
    """
    model.train()
    if checkpointing:
        # Function modes are off in the backward pass, so recomputation has to enter its own.
        kwargs = {
            "use_reentrant": False,
            "context_fn": lambda: (nullcontext(), _AsOnAGpu(autocast)),
        }
        model.gradient_checkpointing_enable(kwargs)
        model.enable_input_require_grads()
    batch: dict[str, Any] = {"input_ids": torch.empty(B, T, dtype=torch.int64, device="meta")}
    if with_mask:
        batch["attention_mask"] = torch.empty(B, 1, T, T, dtype=torch.bool, device="meta")
    bare = unwrap_model(model)
    trunk, head = find_trunk(bare), bare.get_output_embeddings().weight

    def forward_backward(mode: _AsOnAGpu) -> None:
        states = trunk(**batch, use_cache=False).last_hidden_state
        mode.cast_weights.clear()
        for num_bytes in _fused_head_bytes(states, head, autocast):  # of its two passes
            torch.empty(num_bytes, dtype=torch.uint8, device="meta")
        states.backward(torch.empty_like(states))

    # A gradient is freed at once: the plan counts gradients by themselves.
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    hooks = [weight.register_post_accumulate_grad_hook(_free_gradient) for weight in trained]
    # Two runs: FlopCounterMode keeps tensors alive that a real step frees.
    with _on_meta(autocast) as mode, _flop_counter() as flops:
        forward_backward(mode)
    with _on_meta(autocast) as mode, LiveMemory() as memory:
        forward_backward(mode)
    for hook in hooks:
        hook.remove()
    # The head: forward, forward again, gradient of the states, gradient of its weights.
    in_head = 2 * head.numel() * B * T * (4 if head.requires_grad else 3)
    return Counted(memory.peak, flops.get_total_flops() + in_head)


def _free_gradient(weight: Tensor) -> None:
    weight.grad = None


def _fused_head_bytes(states: Tensor, head: Tensor, autocast: bool) -> tuple[int, int]:
    """Memory of TRL's fused head in its forward and in its backward pass."""
    tokens, (V, D) = states.numel() // states.shape[-1], head.shape
    element = 2 if autocast else states.element_size()
    forward = min(tokens, _LOSS_TILE_TOKENS) * _LOSS_TILE_IDS * element
    if head.element_size() != element:
        forward += min(V, _LOSS_TILE_IDS) * D * element  # the cast weights of a tile
    # Gradients are summed in float32.
    return forward, forward + states.numel() * 4 + (V * D * 4 if head.requires_grad else 0)


@contextmanager
def _on_meta(autocast: bool = False) -> Iterator[_AsOnAGpu]:
    from transformers import masking_utils

    with ExitStack() as stack:
        # It reads values to find out whether a row has several documents.
        name = "find_packed_sequence_indices"
        stack.enter_context(mock.patch.object(masking_utils, name, return_value=None))
        if hasattr(F, "grouped_mm"):
            product = partial(_product_of_experts, F.grouped_mm)
            stack.enter_context(mock.patch.object(F, "grouped_mm", product))
        yield stack.enter_context(_AsOnAGpu(autocast))


def _product_of_experts(grouped_mm: Any, states: Tensor, weight: Tensor, **kwargs: Any) -> Tensor:
    """In bfloat16, the only dtype of this product on the meta device."""
    half = grouped_mm(states.to(torch.bfloat16), weight.to(torch.bfloat16), **kwargs)
    return half.to(states.dtype)


def _flop_counter() -> FlopCounterMode:
    experts = {torch.ops.aten._grouped_mm: lambda a, b, *_, **__: 2 * math.prod(a) * b[-1]}
    return FlopCounterMode(display=False, custom_mapping=experts)


class _AsOnAGpu(TorchFunctionMode):
    """Imitates autocast and fused attention of CUDA on the meta device."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self._autocast = autocast
        self.cast_weights: dict[int, Tensor] = {}  # autocast keeps them until the forward pass ends

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._autocast and func in _IN_16_BITS:
            args, kwargs = tree_map(self._to_16_bits, (args, kwargs))
        elif self._autocast and func in _IN_FLOAT32:
            args, kwargs = tree_map(_to_float32, (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is Tensor.__contains__:  # GPT-2 searches for padding
            return False
        return func(*args, **kwargs)

    def _to_16_bits(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dtype != torch.float32:
            return leaf
        if not (leaf.is_leaf and leaf.requires_grad):
            return leaf.to(torch.bfloat16)
        if id(leaf) not in self.cast_weights:
            self.cast_weights[id(leaf)] = leaf.to(torch.bfloat16)
        return self.cast_weights[id(leaf)]


def _to_float32(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.bfloat16 else leaf


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """FlashAttention if possible, else the memory-efficient kernel."""
    if attn_mask is None and query.dtype != torch.float32:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    if key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
