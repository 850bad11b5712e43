"""Log P of observed tokens by a fused GPU kernel: no logits in memory, no wait for the device."""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..projection import Head

# A row is rejected only if its bound lies this far under the cut, in nats: more than what float32
# sums err by, so that no row is rejected which the sum over all ids would keep.
REJECT_MARGIN = 1e-4
# Ids that are visited first by default. Tokenizers number frequent tokens first, so that few of
# them already hold enough probability to reject most of the positions.
NUM_FIRST_IDS = 512
# Ids that one program sums over. A constant, so that a row's sums don't depend on the other rows.
IDS_PER_SPLIT = 2048
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def is_available(device: torch.device) -> bool:
    """Whether the kernel runs on `device`: triton is installed, and the GPU is Ampere or newer.

    With TRITON_INTERPRET=1, triton's interpreter stands in for the GPU, very slowly.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    if _interpreted():
        return True
    # Older GPUs have no bf16 matrix product; AMD's have too little shared memory for the tiles.
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def observed_logprob(
    head: Head,
    hidden: Tensor,
    ids: Tensor,
    *,
    lowest_cut: float = -math.inf,
    first_ids: Tensor | None = None,
) -> Tensor:
    """Log P of one id per row, exact wherever it can matter: early reject on the GPU.

    A first kernel sums over `first_ids` alone, which bounds P from above. The rows that this
    doesn't reject are listed on the device, and a second kernel visits these over the whole
    vocabulary, from the start: what it finds doesn't depend on `first_ids`. No logits are stored,
    and the host never waits for the device.

    Args:
        head: of the prior; V ids. Its weight is float32, bf16 or fp16.
        hidden: (n, D), the hidden states that predict `ids`.
        ids: (n,) int64, in [0, V).
        lowest_cut: nats. No decision turns under it (`EditPolicy.lowest_cut`).
        first_ids: (k,) int64, distinct ids in [0, V) that are likely competitors, on the device of
            the head; default: the first ones of the vocabulary.

    Returns:
        (n,) float32, nats: log P where that is >= `lowest_cut`; elsewhere an upper bound of log P
        that lies under `lowest_cut`. NaN where the prior's numbers are NaN.

    Raises:
        ValueError: the head has no weight, or one of another dtype; the kernel isn't available on
            its device; `first_ids` is not a vector of ids.
    """
    check_usable(head)
    _check_ids(first_ids)
    assert head.weight is not None
    hidden = head.ready(hidden)
    if len(ids) == 0:
        return hidden.new_zeros(0, dtype=torch.float32)
    with torch.cuda.device_of(head.weight):  # triton launches on the current device
        observed = _observed_logits(head, hidden, ids)
        if lowest_cut == -math.inf:
            return _logprob(observed, _others_logsumexp(head, hidden, ids))
        if first_ids is None:
            first_ids = torch.arange(min(NUM_FIRST_IDS, head.vocab_size), device=hidden.device)
        bound = _logprob(observed, _others_logsumexp(head, hidden, ids, columns=first_ids))
        is_open = bound >= lowest_cut - REJECT_MARGIN  # False at NaN, which comes out as it is
        exact = _logprob(observed, _others_logsumexp(head, hidden, ids, is_open=is_open))
        return torch.where(is_open, exact, bound)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_usable(head: Head) -> None:
    """Raise unless the kernel can compute with a head.

    Raises:
        ValueError: the head has no weight, or one of another dtype; the kernel isn't available on
            its device.
    """
    mend = "leave prior.use_kernel() out: without it, log P is computed by PyTorch"
    if head.weight is None:
        raise ValueError(
            "use_kernel: the prior's vocabulary projection has no plain weight (it is quantised, "
            f"or a module of its own); {mend}"
        )
    if head.weight.dtype not in _DTYPES:
        raise ValueError(
            "use_kernel: the weight of the prior's vocabulary projection must be float32, bfloat16 "
            f"or float16, got {head.weight.dtype}; {mend}"
        )
    if not is_available(head.weight.device):
        raise ValueError(
            "use_kernel: the kernel needs triton and an NVIDIA GPU of compute capability 8.0 or "
            f"newer, got a prior on {head.weight.device}; {mend}"
        )


def _check_ids(first_ids: Tensor | None) -> None:
    if first_ids is not None and (first_ids.dim() != 1 or len(first_ids) == 0):
        raise ValueError(
            f"first_ids must be a vector of at least one id, got shape {tuple(first_ids.shape)}; "
            "leave it out for the first ids of the vocabulary"
        )


def _logprob(observed: Tensor, others: Tensor) -> Tensor:
    # log P = -log(1 + sum_others / e^observed): keeps its precision where P is close to 1.
    return -F.softplus(others - observed)


@dataclass(frozen=True)
class _Blocks:
    """The tile that a program of the kernel works on, and how it is compiled.

    Attributes:
        rows: of the tile of logits.
        ids: its columns.
        depth: how many of the D products are summed at once.
        num_warps: of a program.
        num_stages: how many loads are under way ahead of the products.
    """

    rows: int
    ids: int
    depth: int
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, weight: Tensor) -> _Blocks:
        # A fixed choice: autotuning would time kernels, hence wait for them, amid a training step.
        if weight.dtype == torch.float32:  # not on the tensor cores, see "ieee" in the kernel
            return cls(rows=32, ids=64, depth=32, num_warps=4, num_stages=2)
        # Two or three stages of a tile must fit in shared memory: 227 KiB on Hopper and on
        # data-centre Blackwell (9.0, 10.x), 99 KiB on the smallest others.
        if weight.is_cuda and torch.cuda.get_device_capability(weight.device)[0] in (9, 10):
            return cls(rows=128, ids=256, depth=64, num_warps=8, num_stages=3)
        return cls(rows=128, ids=128, depth=64, num_warps=8, num_stages=3)


def _observed_logits(head: Head, hidden: Tensor, ids: Tensor) -> Tensor:
    """The logit of one id per row: (n,) float32."""
    from .triton_kernels import observed_logits_kernel

    n, D = hidden.shape
    out = torch.empty(n, dtype=torch.float32, device=hidden.device)
    rows = 16
    observed_logits_kernel[(-(-n // rows),)](
        **_inputs(head, hidden, ids),
        out_ptr=out,
        n=n,
        D=D,
        BLOCK_M=rows,
        BLOCK_D=128,
    )
    return out


def _others_logsumexp(
    head: Head,
    hidden: Tensor,
    ids: Tensor,
    *,
    columns: Tensor | None = None,
    is_open: Tensor | None = None,
) -> Tensor:
    """Log-sum-exp of the logits of the ids other than the observed one.

    The same kernel with the same blocks for a part of the vocabulary and for all of it: so a logit
    is the same number in both, and no rounding of bf16 lifts the sum of a part above the whole.

    Args:
        head: V ids.
        hidden: (n, D).
        ids: (n,) int64.
        columns: (k,) int64, the ids to sum over; default: all.
        is_open: (n,) bool, the rows to visit; default: all.

    Returns:
        (n,) float32; where not `is_open`, any number.
    """
    from .triton_kernels import others_logsumexp_kernel

    assert head.weight is not None
    n, D = hidden.shape
    blocks = _Blocks.of(head.weight)
    if columns is None:
        num_columns, per_split = head.vocab_size, IDS_PER_SPLIT
    else:  # few: a program for each tile, or there would be too few programs to fill the GPU
        columns = columns.to(device=hidden.device, dtype=torch.int64).contiguous()
        num_columns, per_split = len(columns), blocks.ids
    rows, count = (None, None) if is_open is None else _list_rows(is_open)
    grid = (-(-n // blocks.rows), -(-num_columns // per_split))
    parts = torch.empty(grid[1], n, dtype=torch.float32, device=hidden.device)
    others_logsumexp_kernel[grid](
        **_inputs(head, hidden, ids),
        rows_ptr=rows,
        count_ptr=count,
        columns_ptr=columns,
        out_ptr=parts,
        n=n,
        num_columns=num_columns,
        D=D,
        columns_per_split=per_split,
        EVEN_D=D % blocks.depth == 0,
        BLOCK_M=blocks.rows,
        BLOCK_V=blocks.ids,
        BLOCK_D=blocks.depth,
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
    )
    return parts.logsumexp(0)


def _inputs(head: Head, hidden: Tensor, ids: Tensor) -> dict[str, Any]:
    """The arguments that both kernels have. Matrices go by their strides, never copied."""
    assert head.weight is not None
    return {
        "hidden_ptr": hidden,
        "weight_ptr": head.weight,
        "bias_ptr": None if head.bias is None else head.bias.contiguous(),
        "ids_ptr": ids.contiguous(),
        "stride_hidden_n": hidden.stride(0),
        "stride_hidden_d": hidden.stride(1),
        "stride_weight_v": head.weight.stride(0),
        "stride_weight_d": head.weight.stride(1),
        "scale": None if head.scale == 1.0 else head.scale,
        "softcap": head.softcap,
    }


def _list_rows(is_open: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of the open rows, then those of the others; and how many are open.

    By sums and a scatter, on the device: a boolean index would have the host wait for the count.
    """
    numbers = torch.arange(len(is_open), device=is_open.device)
    rank = is_open.cumsum(0)  # 1, 2, ... at the open rows
    count = rank[-1:]
    slot = torch.where(is_open, rank - 1, count + numbers - rank)
    return torch.empty_like(numbers).scatter_(0, slot, numbers), count
