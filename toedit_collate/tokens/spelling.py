"""Finds the bytes of each token, so that spans of text can be mapped to tokens.

A tokenizer's `decode` does not suffice: it drops the blank before a first word, writes a
replacement for each part of a split character, and gives no offsets.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_KNOWN: weakref.WeakKeyDictionary[Any, tuple[Any, Spelling]] = weakref.WeakKeyDictionary()


BLANK = "▁"  # SentencePiece's sign for a blank


def _byte_level_alphabet() -> dict[int, str]:
    """The characters by which byte-level BPE (as in GPT-2) writes bytes."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in shown]
    characters = {byte: chr(byte) for byte in shown}
    return characters | {byte: chr(0x100 + place) for place, byte in enumerate(hidden)}


CHARACTER_OF_BYTE = _byte_level_alphabet()
BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}


class Spelling:
    """The bytes of a tokenizer's tokens, looked up as they occur.

    Attributes:
        special: ids of special tokens, which are spelled as their names.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._decoders = _decoder_types(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._added = {token_id: str(token) for token_id, token in added.items()}
        self.special = {*tokenizer.all_special_ids, *(i for i, t in added.items() if t.special)}
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def of(cls, tokenizer: Any) -> Spelling:
        """The spelling of a tokenizer; cached."""
        made_of = (len(tokenizer), tokenizer.all_special_ids)
        known = _KNOWN.get(tokenizer)
        if known is None or known[0] != made_of:
            known = _KNOWN[tokenizer] = made_of, cls(tokenizer)
        return known[1]

    def of_tokens(self, ids: Sequence[int], tokenizer: Any) -> list[bytes]:
        """The bytes of each token; empty for an unknown id."""
        missing = [i for i in set(ids) if i not in self._bytes]
        if missing:
            names = tokenizer.convert_ids_to_tokens(missing)
            for token_id, name in zip(missing, names, strict=True):
                self._bytes[token_id] = self._spell(token_id, name or "")
        return [self._bytes[i] for i in ids]

    def text(self, text: str, tokenizer: Any) -> str:
        """A text as its tokens spell it."""
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        spelled = self.of_tokens(ids, tokenizer)
        return b"".join(spelled).decode("utf-8", errors="surrogateescape")

    def names(self, ids: Sequence[int], tokenizer: Any) -> list[str]:
        """The names of special tokens, the longest first."""
        spelled = self.of_tokens(ids, tokenizer)
        return sorted({one.decode() for one in spelled} - {""}, key=lambda n: (-len(n), n))

    def _spell(self, token_id: int, name: str) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        if token_id in self.special or not name:
            return name.encode()
        if "ByteLevel" in self._decoders and all(c in BYTE_OF_CHARACTER for c in name):
            return bytes(BYTE_OF_CHARACTER[c] for c in name)
        if "WordPiece" in self._decoders and not _BYTE_TOKEN.fullmatch(name):
            return (name[2:] if name.startswith("##") else " " + name).encode()
        return piece_bytes(name)


def piece_bytes(name: str) -> bytes:
    """The bytes of a token of SentencePiece."""
    byte = _BYTE_TOKEN.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(BLANK, " ").encode()


def _decoder_types(tokenizer: Any) -> set[str]:
    """The types of steps by which a fast tokenizer joins its tokens."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {state["type"], *(one["type"] for one in state.get("decoders", []))}


def text_of(spelled: Sequence[bytes]) -> tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The text of M tokens, given their bytes, and where each token is in it.

    Returns:
        The text; and two (M,) int64, the characters [begin, end) that each token has a part in. A
        character that is split over tokens belongs to each of them.
    """
    joined = b"".join(spelled)
    # Bytes that are not UTF-8 become one character each.
    text = joined.decode("utf-8", errors="surrogateescape")
    end = np.fromiter(map(len, spelled), np.int64, len(spelled)).cumsum()
    begin = np.concatenate([np.zeros(1, dtype=np.int64), end[:-1]])
    if len(text) == len(joined):
        return text, begin, end
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    escaped = (points >= 0xDC80) & (points <= 0xDCFF)
    width = 1 + (points > 0x7F).astype(int) + (points > 0x7FF) + (points > 0xFFFF)
    width[escaped] = 1
    ends_of_characters = np.cumsum(width)
    first = np.searchsorted(ends_of_characters, begin, side="right")
    last = np.searchsorted(ends_of_characters, end, side="left") + 1
    return text, first, np.where(end > begin, last, first)
