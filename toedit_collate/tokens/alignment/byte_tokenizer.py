"""A tokenizer as a function from bytes to ids, in the middle of a text."""

from __future__ import annotations

import itertools
import json
import operator
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..spelling import CHARACTER_OF_BYTE
from .bytes_of_tokens import Kind, bytes_of_tokens, kind_of

IntArray = npt.NDArray[np.int64]
_BAD_BYTES = re.compile("([\udc80-\udcff]+)")  # as `surrogateescape` decodes them
_REPLACEMENT = "\ufffd".encode()


class ByteTokenizer:
    """Encodes bytes, and knows the bytes of each id. It can be pickled.

    Nothing is put in front of the bytes, and what looks like a special token is text.

    Args:
        tokenizer: of transformers: byte-level BPE, or SentencePiece with byte fallback.
        whose: "trainee's" or "prior's", for messages.

    Raises:
        ValueError: the tokenizer is of another kind.
    """

    def __init__(self, tokenizer: Any, whose: str) -> None:
        self.kind: Kind = kind_of(tokenizer, whose)
        self.bytes: list[bytes | None] = bytes_of_tokens(tokenizer, self.kind)
        # The number of bytes of each id; -1 for special tokens.
        self.lengths: IntArray = np.array(
            [-1 if one is None else len(one) for one in self.bytes], dtype=np.int64
        )
        added = tokenizer.added_tokens_decoder.values()
        names = {*map(str, tokenizer.all_special_tokens), *(t.content for t in added if t.special)}
        self.special = {name: tokenizer.convert_tokens_to_ids(name) for name in sorted(names)}
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self._id_of_byte = {
            one[0]: token_id
            for token_id, one in reversed(list(enumerate(self.bytes)))
            if one is not None and len(one) == 1
        }
        self._raw, self._ids_of_added = _bare_tokenizer(tokenizer, self.kind)

    def encode(self, data: bytes) -> list[int]:
        """The ids of some bytes, which may cut or break characters."""
        try:
            return self._encode_text(data.decode())[0]
        except UnicodeDecodeError:
            if self.kind.name == "byte-level":
                return self._encode_broken(data)
        ids: list[int] = []  # no token of SentencePiece spans an invalid byte
        for good, bad in split_broken(data):
            ids += self._encode_text(good.decode())[0] if good else []
            ids += [self._id_of_byte[byte] for byte in bad]
        return ids

    def first(self, data: bytes) -> int:
        """The first id of the encoding of some bytes; -1 if they do not begin with its bytes."""
        ids = self.encode(data)
        if not ids or not 0 <= ids[0] < len(self.bytes):
            return -1
        piece = self.bytes[ids[0]]
        return ids[0] if piece is not None and data.startswith(piece) else -1

    def decode(self, ids: list[int]) -> bytes | None:
        """The bytes of some ids; None if one of them stands for no text."""
        try:
            return b"".join(map(self.bytes.__getitem__, ids))  # type: ignore[arg-type]
        except (TypeError, IndexError):
            return None

    def _encode_text(self, text: str) -> tuple[list[int], list[int | None]]:
        """Ids, and the number of each id's word (pre-token)."""
        encoded = self._raw.encode(text, add_special_tokens=False)
        ids = encoded.ids
        if self._ids_of_added:
            ids = [self._ids_of_added.get(token_id, token_id) for token_id in ids]
        return ids, encoded.word_ids if self.kind.name == "byte-level" else []

    def _encode_broken(self, data: bytes) -> list[int]:
        """Encode the completed text, and then each word of broken characters by itself."""
        as_word = self._encode_word(data)
        if len(as_word) == 1:  # a token that cuts characters, of which there are thousands
            return as_word
        text, origin = complete(data)
        ids: list[int] = []
        place = 0
        with_words = zip(*self._encode_text(text), strict=True)
        for _, word in itertools.groupby(with_words, operator.itemgetter(1)):
            of_word = [token_id for token_id, _ in word]
            length = len(self.decode(of_word) or b"")
            there = origin[place : place + length]
            place += length
            if min(there, default=-1) < 0:
                of_word = self._encode_word(byte for byte in there if byte >= 0)
            ids += of_word
        return ids

    def _encode_word(self, data: Iterable[int]) -> list[int]:
        word = "".join(CHARACTER_OF_BYTE[byte] for byte in data)
        return [token.id for token in self._raw.model.tokenize(word)]


def _bare_tokenizer(tokenizer: Any, kind: Kind) -> tuple[Any, dict[int, int]]:
    """The tokenizer without special tokens, prefixes and limits, on the same model.

    Returns:
        It; and its ids of added tokens (runs of blanks, say) -> those of the tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

    def made(module: Any, step: dict[str, Any] | None) -> Any:
        if step is None:
            return None
        empty = module.Sequence([])
        empty.__setstate__(json.dumps(step).encode())
        return empty

    raw = Tokenizer(tokenizer.backend_tokenizer.model)
    raw.normalizer = made(normalizers, kind.normalizer)
    raw.pre_tokenizer = made(pre_tokenizers, kind.pre_tokenizer)
    ids: dict[int | None, int] = {}
    for token_id, added in sorted(tokenizer.added_tokens_decoder.items()):
        if not added.special:
            flags = ("single_word", "lstrip", "rstrip", "normalized")
            settings = {flag: getattr(added, flag) for flag in flags}
            raw.add_tokens([AddedToken(added.content, special=False, **settings)])
            ids[raw.token_to_id(added.content)] = token_id
    return raw, {a: b for a, b in ids.items() if a is not None and a != b}


def complete(data: bytes) -> tuple[str, list[int]]:
    """Complete characters that a document or token cuts, so that a text has words.

    The added bytes make a character of the most likely kind: a letter for letters, a symbol for
    emojis.

    Returns:
        The text; and for each of its bytes the byte of `data`, or -1 where it was added. Without
        the -1, these are `data`.

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
                first = (0xC3, 0xE5, 0xF0 if rest[0] >= 0x90 else 0xF1)[len(rest) - 1]
                text += bytes([first]) + rest
                origin += [-1, *rest]
            elif 0xC2 <= lead < 0xF5:  # the beginning of one whose rest was cut off
                place += _length_of_start(bad[begin : begin + 4])
                start = bad[begin:place]
                rest = _rest_of(start)
                text += start + rest
                origin += [*start, *(-1 for _ in rest)]
            else:  # not a byte of UTF-8
                place += 1
                text += _REPLACEMENT
                origin += [lead, -1, -1]
    return text.decode(), origin


def split_broken(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Split bytes into pairs of complete characters and the broken bytes that follow them."""
    parts = _BAD_BYTES.split(data.decode("utf-8", errors="surrogateescape"))
    encoded = [part.encode("utf-8", errors="surrogateescape") for part in parts]
    yield from zip(encoded[::2], [*encoded[1::2], b""], strict=True)


def _length_of_start(data: bytes) -> int:
    """How many bytes belong to an incomplete character that begins here."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.end
    raise AssertionError(data)


def _rest_of(start: bytes) -> bytes:
    """Further bytes for a character that begins with one to three bytes."""
    lead = start[0]
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    rest = bytearray([0xBF] * (length - len(start)))
    if len(start) == 1 and lead in (0xED, 0xF4):  # not every second byte is valid
        rest[0] = 0x9F if lead == 0xED else 0x8F
    return bytes(rest)
