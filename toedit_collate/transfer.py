"""Moving tensors between the host and the prior's device, with as few waits as can be.

A GPU works through a queue; the host waits for it wherever it reads a number. So the edit pass
keeps all that only the tokens decide on the host, and reads from the device in `fetch` alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fetch(*tensors: Tensor) -> list[Tensor]:
    """Bring tensors to the host: the one place where the edit pass waits for the device.

    Returns:
        The tensors, on the CPU; those that are there already, as they are.
    """
    # All copies first, then one wait for all of them.
    fetched = [t.to("cpu", non_blocking=t.is_cuda) for t in tensors]
    for device in {t.device for t in tensors if t.is_cuda}:
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(device))
        done.synchronize()  # not the stream's: CUDA's debug mode for waits refuses that one
    return fetched


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Put a tensor on a device; the host goes on at once.

    From ordinary memory a copy to a GPU makes the host wait for all that was queued before.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def on_host(tensor: Tensor) -> bool:
    """Whether reading the tensor costs no wait."""
    return tensor.device.type == "cpu"
