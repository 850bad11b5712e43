"""The folder of a cache: a sub-folder for each identity, with `identity.json` and segments."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

from ...distributed import rank
from ..segments import read_regular, write_whole
from .block import Block, DamagedCacheError
from .identity import Identity
from .segments import list_segments, read_block, segment_name, write_block

_IDENTITY = "identity.json"


class IdentityFolder:
    """The sub-folder of one identity, as one process reads it and writes to it.

    Args:
        path: of the cache's folder.
        identity: with what its decisions are made.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path / identity.digest
        self._identity = identity
        self._read: set[str] = set()
        self.claim()

    def claim(self) -> None:
        """Write under a name from now on that no other process has, on any host."""
        self._writer = uuid.uuid4().hex[:12]
        self._num_written = 0

    def read_new(self) -> list[Block]:
        """What was written since the last time, by others.

        Raises:
            DamagedCacheError: a file can't be used; names it.
        """
        new = [name for name in list_segments(self.path) if name not in self._read]
        blocks = [read_block(self.path / name, self._identity.digest) for name in new]
        self._read.update(new)
        return blocks

    def write(self, block: Block) -> Block:
        """Write a block; returns it as it is mapped from its file.

        Raises:
            OSError: it can't be written.
        """
        if not (self.path / _IDENTITY).exists():
            self.path.mkdir(parents=True, exist_ok=True)
            note = json.dumps(self._identity.as_json(), indent=1)
            write_whole(self.path / _IDENTITY, note.encode())
        name = segment_name(rank(), self._writer, self._num_written)
        write_block(self.path / name, block, self._identity.digest)
        self._num_written += 1
        self._read.add(name)
        return read_block(self.path / name, self._identity.digest)


def list_identities(path: Path) -> list[Identity]:
    """What the decisions in a cache's folder were made with.

    Raises:
        DamagedCacheError: the note of a sub-folder can't be read; names it.
    """
    if not path.is_dir():
        return []
    notes = [Path(entry.path) / _IDENTITY for entry in os.scandir(path) if entry.is_dir()]
    return [_read_note(note) for note in sorted(notes) if os.path.lexists(note)]


def _read_note(note: Path) -> Identity:
    try:
        identity = Identity.from_json(json.loads(read_regular(note)))
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise DamagedCacheError(
            f"{note} of the decision cache is damaged ({type(error).__name__}: {error}); delete "
            "its folder, and its documents are decided anew"
        ) from error
    if identity.digest != note.parent.name:
        raise DamagedCacheError(
            f"{note} of the decision cache is of another prior, policy, tokenizer or version of "
            f"this package ({identity.digest}) than its folder; delete the folder, and its "
            "documents are decided anew"
        )
    return identity
