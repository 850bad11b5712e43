"""Segments: files of named arrays that are written whole, checked whole, and never changed.

A segment is a safetensors file. Its metadata holds `facts`, JSON that describes the arrays, and
`checksum`: BLAKE2b of the facts and of every array's name, type, shape and bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .ragged import Array

UNFINISHED = ".unfinished"


class DamagedFileError(ValueError):
    """A file does not hold what was written to it."""


def write_segment(
    path: Path, kind: str, arrays: Mapping[str, Array | Tensor], facts: dict[str, Any],
    deflated: Collection[str] = (),
) -> None:  # fmt: skip
    """Write a segment: the whole file, or nothing.

    `kind` names the layout and its version; `facts` is JSON about the arrays; the integer arrays in
    `deflated` are compressed.
    """
    tensors, dtypes = {}, {}
    for name, array in arrays.items():
        if name in deflated:
            values = np.asarray(array)
            dtypes[name] = values.dtype.str
            array = np.frombuffer(zlib.compress(values.tobytes(), 9), np.uint8)
        tensors[name] = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
    text = json.dumps({"kind": kind, "deflated": dtypes, **facts})
    write_whole(path, save(tensors, {"facts": text, "checksum": _checksum(text, tensors)}))


def read_segment(
    path: Path, kind: str, *, mapped: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the facts and arrays of a segment.

    Args:
        path: of the file.
        kind: as given to `write_segment`.
        mapped: leave uncompressed arrays on the disk until they are used. Each mapped array leaks a
            Python int (safetensors 0.8.0), so files that are read often should not be mapped.

    Raises:
        DamagedFileError: the file was cut or changed, or is of another kind. The message does not
            name the file.
        FileNotFoundError: there is no such file.
    """
    check_is_file(path)
    try:
        with safe_open(path, "pt" if mapped else "np") as file:
            metadata = file.metadata() or {}
            names = file.keys()  # not a mapping
            tensors = {name: torch.as_tensor(file.get_tensor(name)) for name in names}
        text, checksum = metadata["facts"], metadata["checksum"]
    except SafetensorError as error:
        raise DamagedFileError(f"it is not a whole safetensors file: {error}") from error
    except KeyError as error:
        raise DamagedFileError(f"its metadata has no {error}") from error
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        raise DamagedFileError(f"it can't be read: {error}") from error
    if _checksum(text, tensors) != checksum:
        raise DamagedFileError("its checksum is wrong")
    try:
        facts = json.loads(text)
        if facts["kind"] != kind:
            raise ValueError(f"it is not a segment of kind {kind!r}, but {facts['kind']!r}")
        for name, dtype in facts.pop("deflated").items():
            data = zlib.decompress(tensors[name].numpy().data)  # at most 1,032 times as large
            tensors[name] = torch.from_numpy(np.frombuffer(data, dtype).copy())
    except Exception as error:  # JSON, numpy and zlib raise many kinds
        raise DamagedFileError(str(error) or type(error).__name__) from error
    return facts, tensors


def check_is_file(path: Path) -> None:
    """Raise unless there is a regular file; opening a FIFO would block for ever."""
    if path.is_file():
        return
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{path}: there is no such file")
    raise DamagedFileError("it is not a regular file, but a folder, FIFO, socket or broken link")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name, flush it to the disk, and rename it; or leave nothing."""
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    with contextlib.suppress(OSError):  # Windows can't open folders, and does not need to
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # of the new name
        finally:
            os.close(folder)


def _checksum(facts: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(facts.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{json.dumps(name)} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
