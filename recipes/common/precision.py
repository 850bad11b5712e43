"""The number format in which a device multiplies matrices fastest, of those that train a model."""

from __future__ import annotations

import torch


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has instructions for it, else float32.

    A CPU without them multiplies bfloat16 several times slower than float32.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def fast_precision(device: torch.device) -> torch.autocast:
    """Autocast to `fast_dtype`; in float32 a context that does nothing."""
    dtype = fast_dtype(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
