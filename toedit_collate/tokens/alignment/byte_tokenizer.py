"""A tokenizer as a function from bytes to ids, in the middle of a text."""

from __future__ import annotations

import itertools
import json
import operator
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..spelling import BLANK, BYTE_OF_CHARACTER, CHARACTER_OF_BYTE, piece_bytes

IntArray = npt.NDArray[np.int64]
_BAD_BYTES = re.compile("([\udc80-\udcff]+)")  # as `surrogateescape` decodes them
# Bytes before and after those of a cut character that complete it, the most likely first.
_COMPLETIONS = [
    *((bytes([first]), b"") for first in (0xC3, 0xE5, 0xF0, 0xF1)),
    # Not every second byte is valid after 0xED and 0xF4.
    *((b"", bytes([second]) + b"\xbf" * n) for n in range(3) for second in (0xBF, 0x9F, 0x8F)),
]
_REPLACEMENT = "\ufffd".encode()
# Pre-tokenizers that split the text and keep all of it.
_KEEPING = ("Split", "Digits", "Punctuation", "UnicodeScripts")


@dataclass(frozen=True)
class Kind:
    """How a tokenizer turns text into tokens."""

    name: str  # "byte-level" (GPT-2's alphabet of bytes) or "sentencepiece" (with byte fallback)
    # where it adds a blank: "never", "first" (in a document) or "always" (after specials, too)
    prefix: str
    prefix_before_blank: bool  # whether it does so even if the text begins with a blank
    # its normalizer without that prefix, as JSON of tokenizers; or None
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None  # its pre-tokenizer without that prefix, as JSON; or None

    def prefixes(self, is_first: bool) -> bool:
        """Whether a text may get a blank in front; `is_first`: the first of its document."""
        return self.prefix == "always" or (self.prefix == "first" and is_first)


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
    """The same model without special tokens and prefixes; and its ids of added tokens -> ours."""
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
        while bad:
            length, character, its_origin = _completed(bad)
            text += character
            origin += its_origin
            bad = bad[length:]
    return text.decode(), origin


def _completed(data: bytes) -> tuple[int, bytes, list[int]]:
    """Complete a character at the beginning of broken bytes: how many it has, and as `complete`."""
    for length in range(min(3, len(data)), 0, -1):
        own = data[:length]
        for before, after in _COMPLETIONS:
            try:
                (before + own + after).decode()
            except UnicodeDecodeError:
                continue
            origin = [*(-1 for _ in before), *own, *(-1 for _ in after)]
            return length, before + own + after, origin
    return 1, _REPLACEMENT, [data[0], -1, -1]  # not a byte of UTF-8


def split_broken(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Split bytes into pairs of complete characters and the broken bytes that follow them."""
    parts = _BAD_BYTES.split(data.decode("utf-8", errors="surrogateescape"))
    encoded = [part.encode("utf-8", errors="surrogateescape") for part in parts]
    yield from zip(encoded[::2], [*encoded[1::2], b""], strict=True)


def kind_of(tokenizer: Any, whose: str) -> Kind:
    """Find out how a tokenizer works; `whose` is "trainee's" or "prior's", for messages.

    Raises:
        ValueError: its tokens do not stand for bytes, or it changes the text.
    """

    def require(is_supported: bool, what: str) -> None:
        if not is_supported:
            raise ValueError(
                f"the {whose} tokenizer is {what}: alignment supports only byte-level BPE and "
                "SentencePiece with byte fallback, whose tokens stand for bytes; use a prior with "
                "the trainee's own tokenizer"
            )

    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    require(backend is not None, f"{type(tokenizer).__name__}, which is not a fast tokenizer")
    model = backend.model
    name = type(model).__name__
    require(name in ("BPE", "Unigram"), f"a {name} tokenizer")
    for flag in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        require(not getattr(model, flag, None), f"a BPE tokenizer with {flag}")
    steps = _steps(backend.normalizer, "normalizers")
    splits = _steps(backend.pre_tokenizer, "pretokenizers")
    is_byte_level = name == "BPE" and any(split["type"] == "ByteLevel" for split in splits)
    for step in steps:
        keeps = step["type"] == "NFC"
        if not is_byte_level:
            keeps |= _is_prepend(step) or _is_blank_sign(step)
        require(keeps, f"a tokenizer whose normalizer {step['type']} changes the text")
    prepends = any(map(_is_prepend, steps))
    signs = any(map(_is_blank_sign, steps))
    prefix, kept = "always" if prepends else "never", []
    for split in splits:
        if is_byte_level and split["type"] == "ByteLevel":
            prefix = "always" if split["add_prefix_space"] else prefix
            split = {**split, "add_prefix_space": False}
        elif not is_byte_level and split["type"] == "Metaspace":
            signs |= split["replacement"] == BLANK
            prefix = prefix if prepends else split.get("prepend_scheme", "always")
            split = {**split, "prepend_scheme": "never"}
        else:
            keeps = split["type"] in _KEEPING and split.get("behavior") != "Removed"
            require(keeps, f"a tokenizer whose pre-tokenizer {split['type']} removes text")
        kept.append(split)
    if not is_byte_level:
        has_bytes = all(model.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
        has_bytes &= getattr(model, "byte_fallback", True)
        require(has_bytes, f"a {name} tokenizer without tokens for single bytes")
        require(signs, "a tokenizer with byte fallback that does not write blanks as ▁")
    return Kind(
        name="byte-level" if is_byte_level else "sentencepiece",
        prefix=prefix,
        prefix_before_blank=prepends,
        normalizer=_sequence([step for step in steps if not _is_prepend(step)], "normalizers"),
        pre_tokenizer=_sequence(kept, "pretokenizers"),
    )


def bytes_of_tokens(tokenizer: Any, kind: Kind) -> list[bytes | None]:
    """The bytes of each id, from 0; None where an id stands for no text (special tokens)."""
    vocabulary = tokenizer.get_vocab()
    table: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        table[token_id] = _token_bytes(token, kind) or None
    for token_id, added in tokenizer.added_tokens_decoder.items():
        text = added.content.replace(BLANK, " ") if kind.name == "sentencepiece" else added.content
        table[token_id] = None if added.special else text.encode()
    unknown = getattr(tokenizer.backend_tokenizer.model, "unk_token", None)
    for token_id in (vocabulary.get(unknown), *tokenizer.all_special_ids):
        if token_id is not None:
            table[token_id] = None
    return table


def _token_bytes(token: str, kind: Kind) -> bytes | None:
    if kind.name == "byte-level":
        try:
            return bytes(BYTE_OF_CHARACTER[character] for character in token)
        except KeyError:
            return None
    return piece_bytes(token)


def _steps(component: Any, name: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a flat list of steps, as JSON."""
    if component is None:
        return []

    def flat(step: dict[str, Any]) -> list[dict[str, Any]]:
        if step["type"] != "Sequence":
            return [step]
        return [inner for one in step[name] for inner in flat(one)]

    return flat(json.loads(component.__getstate__()))


def _sequence(steps: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return {"type": "Sequence", name: steps} if steps else None


def _is_prepend(step: dict[str, Any]) -> bool:
    return step == {"type": "Prepend", "prepend": BLANK}


def _is_blank_sign(step: dict[str, Any]) -> bool:
    return step == {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
