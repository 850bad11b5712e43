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
from collections.abc import Mapping
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
    path: Path, kind: str, arrays: Mapping[str, Array | Tensor], facts: dict[str, Any]
) -> None:
    """Write a segment: the whole file, or nothing.

    `kind` names the layout and its version; `facts` is JSON about the arrays.
    """
    tensors = {
        name: array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
        for name, array in arrays.items()
    }
    text = json.dumps({"kind": kind, **facts})
    write_whole(path, save(tensors, {"facts": text, "checksum": _checksum(text, tensors)}))


def read_segment(
    path: Path, kind: str, *, mapped: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the facts and arrays of a segment of this kind.

    If `mapped`, arrays stay on the disk until they are used. Each mapped array leaks a Python int
    (safetensors 0.8.0), so files that are read often should not be mapped.

    Raises:
        DamagedFileError: the file was cut or changed, is of another kind, or can't be read. The
            message does not name the file.
    """
    if not path.is_file():  # opening a FIFO would block for ever
        raise DamagedFileError("it is not a regular file")
    try:
        with safe_open(path, "pt" if mapped else "np") as file:
            metadata = file.metadata() or {}
            names = file.keys()  # not a mapping
            tensors = {name: torch.as_tensor(file.get_tensor(name)) for name in names}
        text, checksum = metadata["facts"], metadata["checksum"]
    except (KeyError, SafetensorError) as error:
        raise DamagedFileError(f"it is not a whole safetensors file of ours: {error}") from error
    except OSError as error:
        raise DamagedFileError(f"it can't be read: {error}") from error
    if _checksum(text, tensors) != checksum:
        raise DamagedFileError("its checksum is wrong")
    facts = json.loads(text)
    if facts["kind"] != kind:
        raise DamagedFileError(f"it is not a segment of kind {kind!r}, but {facts['kind']!r}")
    return facts, tensors


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
