"""What a run was measured on, and how much memory is free there."""

from __future__ import annotations

import gc
import os
import platform
from pathlib import Path

import torch


def machine_facts(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """What a reader must know before comparing two tables."""
    import transformers

    return {
        "device": _device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} CPUs",
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({gib(properties.total_memory)}, CUDA {torch.version.cuda})"
    return f"{device.type} ({_cpu_name()})"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def available_bytes(device: torch.device) -> int:
    """Memory that is free on a device: what a part may take without asking for trouble."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux: let it try
        return 2**62
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def gib(num_bytes: float) -> str:
    """A size as text."""
    return f"{num_bytes / 2**30:.1f} GiB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on a CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def free_memory(device: torch.device) -> None:
    """Give back what is no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
