"""Counts the memory and the operations of one training step on PyTorch's meta device.

Tensors on the meta device have a shape and a dtype, but no data. A forward and a backward pass of
the real model, of any family, show in seconds what a step allocates and computes. Autocast, fused
attention and dropout masks are those of a GPU.
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
# On a CPU its PyTorch version has this many float32 tiles alive at once (counted).
_LOSS_TILES_ON_CPU = 7
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

    def add(self, num_bytes: float) -> None:
        """Count bytes of which there is no tensor; negative: subtract them."""
        self.live += int(num_bytes)
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in self._storages((args, kwargs)):
            self._follow(storage, 0)  # an unknown argument was made before the mode
        result = func(*args, **(kwargs or {}))
        for storage in self._storages(result):
            self._follow(storage, storage.nbytes())
        return result

    def _follow(self, storage: Any, num_bytes: int) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.add(num_bytes)
        weakref.finalize(storage, self._forget, key, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live -= num_bytes

    @staticmethod
    def _storages(tree: Any) -> list[Any]:
        return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Counted(NamedTuple):
    """One pass or one step: peak bytes without weights and optimizer, and operations.

    A multiplication and an addition are two operations.
    """

    peak: int
    flops: int


def count_forward(model: Any, B: int, T: int) -> Counted:
    """One pass of a frozen prior's backbone over (B, T) tokens, without the head."""
    trunk = find_trunk(unwrap_model(model))
    flops, memory = _flop_counter(), LiveMemory()
    with _on_meta(), flops, memory, torch.no_grad():
        trunk(input_ids=_ids(B, T), use_cache=False)
    return Counted(memory.peak, flops.get_total_flops())


def count_training(
    model: Any, B: int, T: int, *, batches: int = 1, autocast: bool = False,
    checkpointing: bool = False, mask_length: int = 0, fused_head: bool = True,
    gradient_share: float = 1.0, on_gpu: bool = True,
) -> Counted:  # fmt: skip
    """A training step: forward and backward passes, and all gradients.

    Args:
        model: on the meta device, with its adapters; is put in training mode.
        B: rows of a batch.
        T: tokens of a row.
        batches: of the step (gradient accumulation). More than two take as much memory as two.
        autocast: to bfloat16.
        checkpointing: gradient checkpointing.
        mask_length: tokens in a row of the attention mask. 0: no mask, causal attention.
        fused_head: use TRL's loss, which never builds the (B, T, V) logits.
        gradient_share: share of each gradient that one process keeps (FSDP, ZeRO).
        on_gpu: the fused head has a Triton kernel.
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
    rows = (1, mask_length) if mask_length > T else (B, T)  # packed rows are one long row
    batch: dict[str, Any] = {"input_ids": _ids(*rows), "use_cache": False}
    if mask_length:
        shape = (rows[0], 1, rows[1], rows[1])
        batch["attention_mask"] = torch.empty(shape, dtype=torch.bool, device="meta")
    bare = unwrap_model(model)
    trunk, head = find_trunk(bare), bare.get_output_embeddings().weight

    def forward_backward(mode: _AsOnAGpu, memory: LiveMemory | None = None) -> None:
        if fused_head:
            end = trunk(**batch).last_hidden_state
            gradient = torch.empty_like(end)
        else:
            end, gradient = model(**batch, labels=batch["input_ids"]).loss, None
        mode.cast_weights.clear()
        if memory is not None:
            for num_bytes in _fused_head_bytes(end, head, autocast, on_gpu) if fused_head else ():
                memory.add(num_bytes)
                memory.add(-num_bytes)
            if fused_head and head.requires_grad:
                gradients.keep(head)
        torch.autograd.backward(end, gradient)

    # Two runs: FlopCounterMode keeps tensors alive that a real step frees.
    with _on_meta(autocast) as mode, _flop_counter() as flops:
        forward_backward(mode)
    model.zero_grad()
    operations = flops.get_total_flops()
    if fused_head:  # forward, forward again, gradient of the states, gradient of the weights
        operations += 2 * head.numel() * B * T * (4 if head.requires_grad else 3)
    with _on_meta(autocast) as mode, LiveMemory() as memory:
        gradients = _Gradients(memory, gradient_share)
        hooks = [
            p.register_post_accumulate_grad_hook(gradients.keep)
            for p in model.parameters() if p.requires_grad
        ]  # fmt: skip
        for _ in range(min(batches, 2)):
            forward_backward(mode, memory)
        gradients.flush()
    for hook in hooks:
        hook.remove()
    return Counted(memory.peak, operations * batches)


def _ids(B: int, T: int) -> Tensor:
    return torch.empty(B, T, dtype=torch.int64, device="meta")


def _fused_head_bytes(states: Tensor, head: Tensor, autocast: bool, on_gpu: bool) -> list[int]:
    """Memory of TRL's fused head in its forward and in its backward pass."""
    tokens, (V, D) = states.numel() // states.shape[-1], head.shape
    element = 2 if autocast else states.element_size()
    rows, ids = min(tokens, _LOSS_TILE_TOKENS), min(V, _LOSS_TILE_IDS)
    forward = rows * _LOSS_TILE_IDS * element
    if not on_gpu:
        forward += _LOSS_TILES_ON_CPU * rows * ids * 4
    if head.element_size() != element:
        forward += ids * D * element  # the cast weights of a tile
    # Gradients are summed in float32.
    backward = forward + states.numel() * 4 + (V * D * 4 if head.requires_grad else 0)
    return [forward, backward]


class _Gradients:
    """Counts the share of each gradient that one process keeps, and frees the gradient."""

    def __init__(self, memory: LiveMemory, share: float) -> None:
        self._memory, self._share = memory, share
        self._kept: set[int] = set()
        self._pending = 0.0

    def keep(self, weight: Tensor) -> None:
        """A hook for weights that have a new gradient."""
        self.flush()
        if id(weight) not in self._kept:  # later batches add to it
            self._kept.add(id(weight))
            # Not counted yet: the engine still holds the gradient itself.
            self._pending = weight.numel() * weight.element_size() * self._share
        weight.grad = None

    def flush(self) -> None:
        """Count the last gradient."""
        self._memory.add(self._pending)
        self._pending = 0.0


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
    """A counter that includes the products of experts."""
    experts = {torch.ops.aten._grouped_mm: lambda a, b, *_, **__: 2 * math.prod(a) * b[-1]}
    return FlopCounterMode(display=False, custom_mapping=experts)


class _AsOnAGpu(TorchFunctionMode):
    """Imitates CUDA on the meta device: autocast, fused attention, dropout masks."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self._autocast = autocast
        self.cast_weights: dict[int, Tensor] = {}  # autocast keeps them until the forward pass ends

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._autocast and (func in _IN_16_BITS or func in _IN_FLOAT32):
            before = torch.float32 if func in _IN_16_BITS else torch.bfloat16
            after = torch.bfloat16 if func in _IN_16_BITS else torch.float32

            def cast(leaf: Any) -> Any:
                if not isinstance(leaf, Tensor) or leaf.dtype != before:
                    return leaf
                if not (leaf.is_leaf and leaf.requires_grad):
                    return leaf.to(after)
                if id(leaf) not in self.cast_weights:
                    self.cast_weights[id(leaf)] = leaf.to(after)
                return self.cast_weights[id(leaf)]

            args, kwargs = tree_map(cast, (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func is Tensor.__contains__:  # GPT-2 searches for padding
            return False
        return func(*args, **kwargs)


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


def _dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False  # noqa: A002
) -> Tensor:  # fmt: skip
    return torch.native_dropout(input, p, True)[0] if training and p else input
