"""Segments: files of named arrays, written whole, checked whole, and never changed.

A segment is a safetensors file. Its metadata holds `facts`, JSON that says what the arrays are, and
`checksum`: BLAKE2b of the facts and of every array's name, type, shape and bytes. So a bit that is
flipped anywhere is either noticed, or was of no meaning (padding of the header).

Arrays of small numbers are deflated: the lowest bytes of all numbers first, then the next ones,
since those of one significance are alike. zlib expands at most 1,032 times, as its authors say
(zlib.net/zlib_tech.html), so a small file can't claim much memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
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
_MOST_EXPANSION = 1040


class DamagedFileError(ValueError):
    """A file does not hold what was written to it."""


def write_segment(
    path: Path, kind: str, arrays: Mapping[str, Array | Tensor], facts: dict[str, Any],
    deflated: Collection[str] = (),
) -> None:  # fmt: skip
    """Write a segment; the file is there whole, or not at all.

    Args:
        path: of the new file.
        kind: of the segment and version of its layout; `read_segment` asks for the same.
        arrays: one-dimensional.
        facts: about them; JSON.
        deflated: names of the arrays that are worth to be compressed.

    Raises:
        OSError: it can't be written, the disk being full, say.
    """
    tensors, layouts = {}, {}
    for name, array in arrays.items():
        if name in deflated:
            values = np.asarray(array)
            layouts[name] = [values.dtype.str, len(values)]
            array = np.frombuffer(zlib.compress(_by_significance(values), 9), np.uint8)
        tensors[name] = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
    text = json.dumps({"kind": kind, "deflated": layouts, **facts})
    write_whole(path, save(tensors, {"facts": text, "checksum": _checksum(text, tensors)}))


def read_segment(
    path: Path, kind: str, *, mapped: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts and arrays of a segment.

    Args:
        path: of the file.
        kind: that `write_segment` was given.
        mapped: whether arrays that are not deflated stay on the disk until they are looked at. A
            file that is read over and over should be read whole: each mapped array of more than
            256 bytes leaves a Python int behind for ever (safetensors 0.8.0).

    Raises:
        DamagedFileError: the file was cut or changed, or is none of this kind; says what is wrong.
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
        raise DamagedFileError(f"it is no whole safetensors file: {error}") from error
    except KeyError as error:
        raise DamagedFileError(f"its metadata lack {error}") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise DamagedFileError(f"it can't be read: {error}") from error
    if _checksum(text, tensors) != checksum:
        raise DamagedFileError("its checksum is wrong")
    try:
        facts = json.loads(text)
        if not isinstance(facts, dict) or facts.get("kind") != kind:
            raise ValueError(f"it is no segment of the kind {kind!r}")
        for name, (dtype, length) in facts.pop("deflated").items():
            tensors[name] = _inflated(tensors[name], dtype, length)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError, zlib.error) as error:
        raise DamagedFileError(str(error) or type(error).__name__) from error
    return facts, tensors


def read_regular(path: Path, most: int = 2**24) -> bytes:
    """All bytes of a small file.

    Raises:
        DamagedFileError: it is no file, or larger than `most` bytes.
        OSError: it can't be read.
    """
    check_is_file(path)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise DamagedFileError(f"it is larger than {most:,} bytes")
    return content


def check_is_file(path: Path) -> None:
    """See that there is a regular file: to open a FIFO would wait for ever.

    Raises:
        DamagedFileError: there is something else.
        FileNotFoundError: there is nothing.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise DamagedFileError("it is a link to nothing") from None
        raise
    except OSError as error:  # a loop of links
        raise DamagedFileError(f"it can't be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise DamagedFileError("it is no regular file")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name, see it safely on the disk, and rename it.

    Raises:
        OSError: it can't be written; then nothing is there.
    """
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
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """See a new name safely on the disk, where the system can: Windows does so by itself."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _checksum(facts: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(facts.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{json.dumps(name)} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _by_significance(values: Array) -> bytes:
    """(n,) numbers of k bytes as k runs of n bytes."""
    planes = values.view(np.uint8).reshape(len(values), values.dtype.itemsize)
    return np.ascontiguousarray(planes.T).tobytes()


def _inflated(packed: Tensor, dtype: str, length: int) -> Tensor:
    kind = np.dtype(dtype)
    size = length * kind.itemsize
    if kind.kind not in "iu" or length < 0 or size > _MOST_EXPANSION * (packed.numel() + 1):
        raise ValueError(f"{packed.numel()} bytes can't hold {length} numbers of type {dtype}")
    stream = zlib.decompressobj()
    data = stream.decompress(packed.numpy().tobytes(), size + 1)
    if len(data) != size or not stream.eof or stream.unused_data:
        raise ValueError(f"a column does not hold the {length} numbers that it should")
    planes = np.frombuffer(data, np.uint8).reshape(kind.itemsize, length)
    values = np.array(planes.T, order="C").view(kind).reshape(length)
    return torch.from_numpy(values)
