"""The files of a cache: blocks of decisions in safetensors, written once and never changed."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .block import OF_CANDIDATES, OF_DOCUMENTS, OF_TOKENS, Block, DamagedCacheError
from .decisions import Array

_NAME = re.compile(r"rank-\d+\.[0-9a-f]+\.\d+\.safetensors")
_MEND = "delete it, and its documents are decided anew"


def segment_name(rank: int, writer: str, number: int) -> str:
    """The name of a segment.

    Args:
        rank: of the process that writes it.
        writer: tells processes of one rank apart, on any host: random hex digits.
        number: of the segments that this process has written.
    """
    return f"rank-{rank:05d}.{writer}.{number:06d}.safetensors"


def list_segments(folder: Path) -> list[str]:
    """The names of the segments in a folder, sorted; a file that is being written is none."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if _NAME.fullmatch(entry.name))


def write_segment(path: Path, block: Block, identity: str) -> None:
    """Write a block; the file is there whole, or not at all.

    Args:
        path: of the new file.
        block: to write.
        identity: digest of what the decisions were made with.

    Raises:
        OSError: it can't be written, the disk being full, say.
    """
    names = (*OF_DOCUMENTS, *OF_TOKENS, *OF_CANDIDATES)
    tensors = {name: torch.from_numpy(getattr(block, name)) for name in names}
    if block.logits.dtype == np.uint16:
        tensors["logits"] = tensors["logits"].view(torch.bfloat16)
    metadata = {"identity": identity, "crc32": str(_checksum(block))}
    write_whole(path, save(tensors, metadata))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name, see it safely on the disk, and rename it."""
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.unfinished")
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


def read_segment(path: Path, identity: str) -> Block:
    """Open a segment. The arrays of tokens and candidates are mapped, not read.

    Raises:
        DamagedCacheError: the file was cut or changed, or belongs elsewhere.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            arrays = {name: _as_array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        block = _as_block(arrays, path)
        checksum = int(metadata["crc32"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DamagedCacheError(
            f"segment {path} of the decision cache is damaged ({error}); {_MEND}"
        ) from error
    if metadata.get("identity") != identity:
        raise DamagedCacheError(
            f"segment {path} of the decision cache is of another prior, policy or tokenizer "
            f"({metadata.get('identity')}) than its folder; move it back, or delete it"
        )
    if checksum != _checksum(block):
        raise DamagedCacheError(
            f"segment {path} of the decision cache is damaged (wrong checksum); {_MEND}"
        )
    return block


def _as_array(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()


def _as_block(arrays: dict[str, Array], path: Path) -> Block:
    # What look-ups search is copied, so that they wait for no disk.
    arrays |= {name: np.array(arrays[name]) for name in OF_DOCUMENTS}
    block = Block(**arrays, source=f"segment {path} of the decision cache")
    num_tokens, num_candidates = int(block.counts.sum()), int(block.widths.sum())
    sizes: dict[str, Any] = dict.fromkeys(OF_DOCUMENTS, len(block.keys))
    sizes |= dict.fromkeys(OF_TOKENS, num_tokens) | dict.fromkeys(OF_CANDIDATES, num_candidates)
    for name, size in sizes.items():
        found = len(arrays[name])
        if found != size and not (name == "ids_high" and found == 0):
            raise ValueError(f"{name} holds {found} numbers instead of {size}")
    return block


def _checksum(block: Block) -> int:
    """Of the arrays that are read at once: those of documents."""
    checksum = 0
    for name in OF_DOCUMENTS:
        checksum = zlib.crc32(getattr(block, name).tobytes(), checksum)
    return checksum
