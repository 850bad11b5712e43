"""Moves tensors between the host and the prior's device, with as few waits as possible.

A GPU works through a queue; the host waits for it wherever it reads a number. So the edit pass
computes on the host what follows from the tokens alone, and reads from the device only in `fetch`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fetch(*tensors: Tensor | None) -> list[Any]:
    """Copy tensors to the host, and keep None: the only wait for a GPU in the edit pass."""
    # All copies first, then one wait for all of them.
    fetched = [None if t is None else t.to("cpu", non_blocking=t.is_cuda) for t in tensors]
    for device in {t.device for t in tensors if t is not None and t.is_cuda}:
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(device))
        done.synchronize()  # not the stream's: CUDA's debug mode for waits refuses that one
    return fetched


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without a wait."""
    # A copy from ordinary memory to a GPU would wait for all that was queued before.
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def on_host(tensor: Tensor) -> bool:
    """Whether reading the tensor needs no wait."""
    return tensor.device.type == "cpu"
