"""Bytes that are no whole UTF-8 characters: documents may be cut inside one, tokens as well."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BAD_BYTES = re.compile("([\udc80-\udcff]+)")  # as `surrogateescape` decodes them
_REPLACEMENT = "\ufffd".encode()


def complete(data: bytes) -> tuple[str, list[int]]:
    """Complete cut and broken characters, so that a tokenizer can split the text into words.

    What is added is chosen so that the character is of the kind that it most likely was: a letter
    for letters, a symbol for emojis.

    Args:
        data: any bytes.

    Returns:
        The text; and for each of its bytes, the one of `data` that stands there, or -1 where it was
        added. Without the -1 these are `data`.

    Example:
        >>> complete("né".encode()[:2])
        ('nÿ', [110, 195, -1])
    """
    text = bytearray()
    origin: list[int] = []
    for good, bad in split_broken(data):
        text += good
        origin += good
        place = 0
        while place < len(bad):
            begin, lead = place, bad[place]
            if 0x80 <= lead < 0xC0:  # the rest of a character whose beginning was cut off
                while place < len(bad) and place - begin < 3 and 0x80 <= bad[place] < 0xC0:
                    place += 1
                rest = bad[begin:place]
                text += bytes([_lead_of(rest)]) + rest
                origin += [-1, *rest]
            elif 0xC2 <= lead < 0xF5:  # the beginning of one whose rest was cut off
                place += _length_of_start(bad[begin : begin + 4])
                start = bad[begin:place]
                rest = _rest_of(start)
                text += start + rest
                origin += [*start, *(-1 for _ in rest)]
            else:  # no byte of UTF-8
                place += 1
                text += _REPLACEMENT
                origin += [lead, -1, -1]
    return text.decode(), origin


def split_broken(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    r"""Split bytes into pairs of whole characters and the broken bytes that follow them.

    Example:
        >>> list(split_broken(b"a\xff\xc3b"))
        [(b'a', b'\xff\xc3'), (b'b', b'')]
    """
    parts = _BAD_BYTES.split(data.decode("utf-8", errors="surrogateescape"))
    encoded = [part.encode("utf-8", errors="surrogateescape") for part in parts]
    yield from zip(encoded[::2], [*encoded[1::2], b""], strict=True)


def _length_of_start(data: bytes) -> int:
    """How many bytes belong to a character that begins here and is not complete."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.end
    raise AssertionError(data)


def _lead_of(rest: bytes) -> int:
    """The first byte of a character that may go on with one to three others."""
    if len(rest) == 1:
        return 0xC3
    if len(rest) == 2:
        return 0xE5
    return 0xF0 if rest[0] >= 0x90 else 0xF1


def _rest_of(start: bytes) -> bytes:
    """Further bytes for a character that begins with one to three others."""
    lead = start[0]
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    rest = bytearray([0xBF] * (length - len(start)))
    if len(start) == 1 and lead in (0xED, 0xF4):  # not every second byte is one of theirs
        rest[0] = 0x9F if lead == 0xED else 0x8F
    return bytes(rest)
