"""A pretend GPU, for machines without one.

Its tensors say that they are on cuda:0 and compute on the CPU. They refuse to mix with tensors of
the CPU, as CUDA's do, and every operation at which the host would wait for a GPU is noted in
`WAITS`. It shows wrong devices and waits; it shows nothing about speed, memory or kernels.

`pytest -p pretend_gpu` installs it before any test is imported. It replaces functions of
`torch.cuda` for good, so it belongs into a process of its own.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import torch
import torch._dynamo  # these ask for the GPU when they are imported
import torch._inductor.utils
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")
WAITS: list[str] = []  # operation and place, one for each wait of the host
_GIB = 2**30
_RAISES = [False]
_PINNED: set[int] = set()
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_MAY_MIX = _INDEXING | {"copy_", "_to_copy", "is_pinned"}
_WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "is_nonzero", "allclose", "_assert_scalar",
}  # fmt: skip


class PretendTensor(torch.Tensor):
    """A tensor of the pretend GPU; `on_cpu` holds the data."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_cpu, requires_grad=False):
        self = torch.Tensor._make_wrapper_subclass(
            cls, on_cpu.size(), strides=on_cpu.stride(), storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype, layout=on_cpu.layout, device=CUDA, requires_grad=requires_grad,
        )  # fmt: skip
        self.on_cpu = on_cpu.detach()
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def __repr__(self, **_):
        return f"pretend({self.on_cpu!r})"

    def data_ptr(self):
        return self.on_cpu.data_ptr()


# Plain tensors are known by the name of their class.
PretendTensor.__name__ = "Tensor"


def is_far(value) -> bool:
    return isinstance(value, PretendTensor)


def wait(operation: str, *, seen: bool = True) -> None:
    """Note that the host waits; raise where CUDA's debug mode would, which does not see all."""
    frame, places = sys._getframe(1), []
    while frame is not None:
        name = frame.f_code.co_filename
        known = any(f"{part}/" in name for part in ("toedit_collate", "transformers", "tests"))
        if known and "pretend_gpu" not in name:
            places.append(f"{'/'.join(name.split('/')[-2:])}:{frame.f_lineno}")
        frame = frame.f_back
    WAITS.append(f"{operation}: {' < '.join(places[:3])}")
    if seen and _RAISES[0]:
        raise RuntimeError(f"called a synchronizing CUDA operation ({WAITS[-1]})")


def run(func, args, kwargs):
    """One operation: check the devices, note waits, compute on the CPU."""
    name = func.overloadpacket.__name__
    leaves = tree_leaves((args, kwargs))
    far = any(map(is_far, leaves))
    device = kwargs.get("device")
    to_far = device is not None and torch.device(device).type == "cuda"
    if not far and not to_far:
        return func(*args, **kwargs)
    near = [x for x in leaves if isinstance(x, torch.Tensor) and not is_far(x) and x.dim()]
    if far and near and name not in _MAY_MIX:
        raise RuntimeError(f"tensors of cuda:0 and of the CPU at once ({func})")
    if name in _INDEXING:
        _check_indices(name, args)
    elif name in _WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        wait(name)
    result_is_far = far
    if name == "_to_copy":
        result_is_far = to_far or (device is None and far)
        if far != result_is_far:
            _note_copy(args[0], far, kwargs.get("non_blocking", False))
        kwargs = {key: value for key, value in kwargs.items() if key != "non_blocking"}
    elif name == "copy_" and is_far(args[0]) != is_far(args[1]):
        _note_copy(args[1], is_far(args[1]), (*args, False)[2])
    elif name == "is_pinned":
        return False
    elif name == "_fused_sdp_choice":
        return 0
    on_cpu = lambda x: x.on_cpu if is_far(x) else x  # noqa: E731
    near_args, near_kwargs = tree_map(on_cpu, args), tree_map(on_cpu, kwargs)
    if device is not None:
        near_kwargs["device"] = torch.device("cpu")
    near_kwargs.pop("pin_memory", None)
    with _disable_current_modes():
        result = func(*near_args, **near_kwargs)
        if name == "_to_copy" and result is near_args[0]:
            result = result.clone()
    if args and is_far(args[0]) and _writes_to_its_first_argument(func):
        return args[0]
    if is_far(kwargs.get("out")):
        return kwargs["out"]
    if not (result_is_far or to_far):
        return result
    return tree_map(lambda x: PretendTensor(x) if isinstance(x, torch.Tensor) else x, result)


def _writes_to_its_first_argument(func) -> bool:
    alias = func._schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def _check_indices(name, args) -> None:
    if not is_far(args[0]):
        raise RuntimeError(f"{name}: indices of cuda:0 for a tensor of the CPU")
    for index in args[1]:
        if index is None:
            continue
        if not is_far(index):
            wait(f"{name} with indices on the CPU")
        elif index.dtype == torch.bool and (name == "index" or args[2].numel() != 1):
            wait(f"{name} by a mask")
    if name != "index" and len(args) > 2 and not is_far(args[2]) and args[2].dim():
        raise RuntimeError(f"{name}: values of the CPU for a tensor of cuda:0")


def _note_copy(source, to_host: bool, non_blocking: bool) -> None:
    if not non_blocking:
        wait(f"copy to the {'host' if to_host else 'device'}")
    elif not to_host and source.nbytes and source.untyped_storage()._cdata not in _PINNED:
        wait("copy from memory that is not pinned", seen=False)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What reads or makes tensors without passing the dispatcher."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.tolist and is_far(args[0]):
            wait("tolist")
            return args[0].on_cpu.tolist()
        if func is torch.Tensor.numpy and is_far(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        makes = func is torch.tensor and _index(kwargs.get("device")) == CUDA
        if makes or (func is torch.Tensor.new_tensor and is_far(args[0])):
            wait("a new tensor with values of the host")
            values = args[0] if makes else args[1]
            if not makes:
                kwargs.setdefault("dtype", args[0].dtype)
            kwargs.pop("device", None)
            with _disable_current_modes():
                return PretendTensor(torch.tensor(values, **kwargs))
        if func is torch.Tensor.cuda:
            return args[0].to(CUDA, non_blocking=kwargs.get("non_blocking", False))
        if func is torch.Tensor.to:
            args = tuple(_index(value) for value in args)
        if "device" in kwargs:
            kwargs["device"] = _index(kwargs["device"])
        return func(*args, **kwargs)


def _index(value):
    """ "cuda" -> "cuda:0"; anything else as it is."""
    is_cuda = isinstance(value, (str, torch.device)) and str(value) == "cuda"
    return CUDA if is_cuda else value


class _Stream:
    device, cuda_stream = CUDA, 0

    def synchronize(self):
        wait("Stream.synchronize")

    def wait_stream(self, stream): ...

    def record_event(self, event=None):
        return event or _Event()


class _Event:
    def __init__(self, **_): ...

    def record(self, *_):
        self.time = time.perf_counter()

    def synchronize(self):
        wait("Event.synchronize", seen=False)

    def query(self):
        return True

    def elapsed_time(self, other):
        return 1000 * (other.time - self.time)


class _Inside:
    """A context that does nothing."""

    idx = 0

    def __init__(self, *_): ...

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def build_guard() -> ctypes.CDLL:
    """Compile and load the C++ part, once per version of torch and process.

    Raises:
        RuntimeError: there is no compiler.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise RuntimeError("the pretend GPU needs a C++ compiler; install one, or set CXX")
    root, source = Path(torch.__file__).parent, Path(__file__).with_name("pretend_guard.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "guard.so"
        subprocess.run(
            [compiler, "-std=c++20", "-shared", "-fPIC", f"-I{root}/include", source, "-o", library,
             f"-L{root}/lib", "-lc10"],
            check=True,
        )  # fmt: skip
        return ctypes.CDLL(str(library))


def install() -> None:
    """Make this process believe in one GPU of compute capability 9.0."""
    build_guard()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    properties = SimpleNamespace(
        name="pretend GPU", total_memory=139 * _GIB, multi_processor_count=132, major=9, minor=0
    )
    nothing = lambda *_, **__: None  # noqa: E731
    zero = lambda *_, **__: 0  # noqa: E731

    def set_sync_debug_mode(mode):
        _RAISES[0] = mode in ("error", 2)

    replaced = {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1,
        "current_device": zero, "get_device_capability": lambda *_: (9, 0),
        "current_stream": lambda *_: _Stream(), "default_stream": lambda *_: _Stream(),
        "Event": _Event, "Stream": _Stream, "stream": _Inside, "device": _Inside,
        "device_of": _Inside, "memory_allocated": zero, "memory_reserved": zero,
        "max_memory_allocated": zero, "mem_get_info": lambda *_: (130 * _GIB, 139 * _GIB),
        "is_bf16_supported": lambda *_, **__: True, "set_sync_debug_mode": set_sync_debug_mode,
        "get_device_properties": lambda *_: properties, "get_device_name": lambda *_: "pretend GPU",
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": lambda: [],
    }  # fmt: skip
    replaced |= dict.fromkeys(
        ("_lazy_init", "manual_seed", "manual_seed_all", "set_rng_state", "set_rng_state_all",
         "synchronize", "empty_cache", "reset_peak_memory_stats", "set_device"), nothing,
    )  # fmt: skip
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    torch._C._cuda_getDeviceCount = lambda: 1

    def pin_memory(self, device=None):
        pinned = self.clone()
        storage = pinned.untyped_storage()
        _PINNED.add(storage._cdata)
        weakref.finalize(storage, _PINNED.discard, storage._cdata)
        return pinned

    torch.Tensor.pin_memory = pin_memory
    torch.Tensor.is_pinned = lambda self, device=None: (
        not is_far(self) and self.untyped_storage()._cdata in _PINNED
    )
    _Dispatch().__enter__()
    _Functions().__enter__()


def pytest_configure(config):
    """A hook of pytest."""
    install()
