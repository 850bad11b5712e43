"""The files of a journal: frames behind one another, each an Arrow table with a checksum.

A frame is a header (magic, length, CRC-32 of what follows, CRC-32 of these twelve bytes) and two
Arrow IPC streams, compressed:

| stream | a row for each | columns |
| --- | --- | --- |
| documents | document that was edited | `key`, `changes`: (`position`, `old`, `new`) |
| steps | step of training, in the same order | `step`, and counts: `documents`, `tokens`, ... |

`new` is -1 where the token was removed. What holds for the whole frame (generation, prior, policy,
run) is JSON in the metadata of the first schema. A frame is written in one go, and never changed.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

MAGIC = b"TEJ1"
_HEADER = struct.Struct("<4sII")
_CHECKSUM = struct.Struct("<I")
_HEADER_SIZE = _HEADER.size + _CHECKSUM.size
_METADATA = b"toedit"
STEP_COLUMNS = ("step", "documents", "tokens", "scored", "selected")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Frame:
    """The edits of some documents, and what they were made with.

    Attributes:
        info: of the whole frame: `generation`, `prior`, `policy`, `run`, `attempt`, `resumed_at`.
        keys: (n,) uint64, of the documents' content.
        counts: (n,) int64, how many changes each has.
        changes: (c, 3) int64, position, old and new token; of all documents, one after the other.
        steps: name -> (s,) int64, see `STEP_COLUMNS`; their `documents` sum up to n.
    """

    info: dict[str, Any]
    keys: Array
    counts: Array
    changes: Array
    steps: dict[str, Array]

    @property
    def step_of_document(self) -> Array:
        """(n,) int64."""
        return np.repeat(self.steps["step"], self.steps["documents"])


class DamagedJournalError(ValueError):
    """A journal's file does not hold what was written to it."""


def arrow() -> Any:
    """The module pyarrow.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            "a journal needs pyarrow; pip install 'toedit_collate[journal]'"
        ) from error
    return pyarrow


@cache
def _document_schema() -> Any:
    pa = arrow()
    change = pa.struct([("position", pa.uint32()), ("old", pa.uint32()), ("new", pa.int32())])
    return pa.schema([("key", pa.uint64()), ("changes", pa.list_(change))])


@cache
def _step_schema() -> Any:
    pa = arrow()
    return pa.schema([(name, pa.uint64()) for name in STEP_COLUMNS])


def encode(frame: Frame) -> bytes:
    """The frame as bytes, header included."""
    pa = arrow()
    offsets = np.concatenate([[0], np.cumsum(frame.counts)]).astype(np.int32)
    position, old, new = frame.changes.T
    changes = pa.StructArray.from_arrays(
        [pa.array(position, pa.uint32()), pa.array(old, pa.uint32()), pa.array(new, pa.int32())],
        fields=list(_document_schema().field("changes").type.value_type),
    )
    documents = pa.record_batch(
        [pa.array(frame.keys, pa.uint64()), pa.ListArray.from_arrays(offsets, changes)],
        schema=_document_schema(),
    )
    steps = pa.record_batch(
        [pa.array(frame.steps[name], pa.uint64()) for name in STEP_COLUMNS], schema=_step_schema()
    )
    described = documents.replace_schema_metadata({_METADATA: json.dumps(frame.info)})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=6))
    for batch in (described, steps):
        with pa.ipc.new_stream(sink, batch.schema, options=options) as stream:
            stream.write_batch(batch)
    payload = sink.getvalue().to_pybytes()
    header = _HEADER.pack(MAGIC, len(payload), zlib.crc32(payload))
    return header + _CHECKSUM.pack(zlib.crc32(header)) + payload


def read_frames(path: Path) -> Iterator[Frame]:
    """The frames of a file, up to one that is still being written (or was when it was killed).

    Raises:
        DamagedJournalError: bytes were changed or lost since they were written.
    """
    with path.open("rb") as file:
        for begin, payload in _payloads(file, path):
            yield _decode(payload, path, begin)


def whole_length(path: Path) -> int:
    """How many bytes of a file are whole frames; what follows them was never finished."""
    end = 0
    with path.open("rb") as file:
        for begin, payload in _payloads(file, path):
            end = begin + _HEADER_SIZE + len(payload)
    return end


def _payloads(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    while True:
        begin = file.tell()
        header = file.read(_HEADER_SIZE)
        # A torn header still begins like one.
        if not MAGIC.startswith(header[: len(MAGIC)]):
            raise _damage(path, begin, "there is no frame")
        if len(header) < _HEADER_SIZE:
            return
        if _CHECKSUM.pack(zlib.crc32(header[: _HEADER.size])) != header[_HEADER.size :]:
            raise _damage(path, begin, "the checksum of a frame's header is wrong")
        _, length, checksum = _HEADER.unpack(header[: _HEADER.size])
        payload = file.read(length)
        if len(payload) < length:
            return
        if zlib.crc32(payload) != checksum:
            raise _damage(path, begin, "the checksum of a frame is wrong")
        yield begin, payload


def _damage(path: Path, offset: int, what: str) -> DamagedJournalError:
    return DamagedJournalError(
        f"journal file {path} is damaged at byte {offset}: {what}; restore it from a copy, or cut "
        f"it there (truncate -s {offset}), which loses the edits behind it"
    )


def _decode(payload: bytes, path: Path, begin: int) -> Frame:
    pa = arrow()
    source = pa.BufferReader(payload)
    try:
        with pa.ipc.open_stream(source) as stream:
            documents = stream.read_next_batch()
            info = json.loads(stream.schema.metadata[_METADATA])
            stream.read_all()  # up to the end of this stream
        with pa.ipc.open_stream(source) as stream:
            steps = stream.read_next_batch()
        changes = documents.column("changes")
        values = changes.values
        return Frame(
            info=info,
            keys=documents.column("key").to_numpy(),
            counts=np.diff(changes.offsets.to_numpy()).astype(np.int64),
            changes=np.stack(
                [values.field(i).to_numpy().astype(np.int64) for i in range(3)], axis=1
            ),
            steps={name: steps.column(name).to_numpy().astype(np.int64) for name in STEP_COLUMNS},
        )
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError, StopIteration) as error:
        raise _damage(path, begin, f"a frame can't be read ({error})") from error
