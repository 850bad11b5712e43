"""An optional GPU kernel for log P, imported on first use. It needs triton."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from .projection import Head

# Logits that one program reads at once: for each thread, as many 16-bit numbers as one load takes.
BLOCK = 2048
NUM_WARPS = 8


def is_available(device: torch.device) -> bool:
    """Whether the kernel runs on `device`: triton is installed and supports the GPU.

    With TRITON_INTERPRET=1, triton's interpreter replaces the GPU, very slowly.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def check_usable(head: Head) -> None:
    """Raise a ValueError unless the kernel can sum the logits of a head."""
    if not is_available(head.weight.device):
        raise ValueError(
            "use_kernel: the kernel needs triton and an AMD GPU, or an NVIDIA GPU of compute "
            f"capability 8.0 or newer, got a prior on {head.weight.device}; leave "
            "prior.use_kernel() out: without it, PyTorch computes log P"
        )


def add_tile(others: Tensor, tile: Tensor, own: Tensor) -> None:
    """Add a tile of logits to the log-sum-exp of each row, in one pass over the tile; no wait.

    The tile is read once, in the dtype of the model: 2 bytes per logit. PyTorch's operations move
    32. `others`, (n,) float32, is the log-sum-exp so far (-inf at first), and is changed. The
    columns of the (n, m) `tile` have stride 1. `own`, (n,) int64, is the column of the observed
    id, which is left out; it may be outside of the tile.
    """
    from .triton_kernels import add_tile_kernel

    with torch.cuda.device_of(tile):  # triton launches on the current device
        add_tile_kernel[(len(tile),)](
            others, tile, own, tile.shape[1], tile.stride(0), BLOCK=BLOCK, num_warps=NUM_WARPS
        )
