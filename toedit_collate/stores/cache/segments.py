"""The files of a cache: blocks of decisions as segments."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..ragged import Array
from ..segments import DamagedFileError, read_segment, write_segment
from .block import OF_CANDIDATES, OF_DOCUMENTS, OF_TOKENS, Block, DamagedCacheError

KIND = "toedit decisions, 1"
_NAMES = (*OF_DOCUMENTS, *OF_TOKENS, *OF_CANDIDATES)
_NAME = re.compile(r"rank-\d+\.[0-9a-f]+\.\d+\.safetensors")
_MEND = "delete it, and its documents are decided anew"

# The types that each array may have.
_TYPES: dict[str, tuple[type, ...]] = {
    "keys": (np.uint64,),
    "checks": (np.uint64,),
    "counts": (np.uint32,),
    "widths": (np.uint32,),
    "position": (np.uint16, np.uint32),
    "num_candidates": (np.uint8, np.uint16, np.uint32),
    "ids_low": (np.uint16,),
    "ids_high": (np.uint8, np.uint16),
    "logits": (np.uint16, np.float16, np.float32),
}


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


def write_block(path: Path, block: Block, identity: str) -> None:
    """Write a block; the file is there whole, or not at all.

    Args:
        path: of the new file.
        block: to write.
        identity: digest of what the decisions were made with.

    Raises:
        OSError: it can't be written, the disk being full, say.
    """
    arrays: dict[str, Any] = {name: getattr(block, name) for name in _NAMES}
    if block.logits.dtype == np.uint16:  # the upper halves of float32
        arrays["logits"] = torch.from_numpy(block.logits).view(torch.bfloat16)
    write_segment(path, KIND, arrays, {"identity": identity})


def read_block(path: Path, identity: str) -> Block:
    """Open a segment, and check all of it. The arrays of tokens and candidates stay mapped.

    Raises:
        DamagedCacheError: the file was cut or changed, or belongs elsewhere.
    """
    try:
        facts, tensors = read_segment(path, KIND)
        block = _as_block({name: _as_array(tensor) for name, tensor in tensors.items()}, path)
    except (DamagedFileError, FileNotFoundError) as error:
        raise DamagedCacheError(
            f"segment {path} of the decision cache is damaged ({error}); {_MEND}"
        ) from error
    if facts.get("identity") != identity:
        raise DamagedCacheError(
            f"segment {path} of the decision cache is of another prior, policy or tokenizer "
            f"({facts.get('identity')}) than its folder; move it back, or delete it"
        )
    return block


def _as_array(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()


def _as_block(arrays: dict[str, Array], path: Path) -> Block:
    if arrays.keys() != _TYPES.keys():
        raise DamagedFileError("it has other fields than a segment of decisions")
    for name, array in arrays.items():
        if array.dtype not in _TYPES[name] or array.ndim != 1:
            raise DamagedFileError(f"{name} is of another type or shape")
    # What look-ups search is copied, so that they wait for no disk.
    arrays |= {name: np.array(arrays[name]) for name in OF_DOCUMENTS}
    block = Block(**arrays, source=f"segment {path} of the decision cache")
    num_tokens, num_candidates = int(block.counts.sum()), int(block.widths.sum())
    sizes: dict[str, Any] = dict.fromkeys(OF_DOCUMENTS, len(block.keys))
    sizes |= dict.fromkeys(OF_TOKENS, num_tokens) | dict.fromkeys(OF_CANDIDATES, num_candidates)
    for name, size in sizes.items():
        found = len(arrays[name])
        if found != size and not (name == "ids_high" and found == 0):
            raise DamagedFileError(f"{name} holds {found} numbers instead of {size}")
    if (block.keys[1:] <= block.keys[:-1]).any():
        raise DamagedFileError("its keys are out of order")
    return block
