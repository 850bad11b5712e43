"""A tokenizer as a function from bytes to ids, in the middle of a text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from .broken import complete, split_broken
from .bytes_of_tokens import CHARACTER_OF_BYTE, Kind, bytes_of_tokens, kind_of

IntArray = npt.NDArray[np.int64]


class ByteTokenizer:
    """Encodes bytes, and tells which bytes an id stands for. It can be sent to other processes.

    Bytes are taken for the middle of a text: nothing is put in front of them, and what looks like a
    special token is text.

    Args:
        tokenizer: of transformers: byte-level BPE, or SentencePiece with byte fallback.
        whose: "trainee's" or "prior's", for messages.

    Raises:
        ValueError: it is of another kind.
    """

    def __init__(self, tokenizer: Any, whose: str) -> None:
        self.kind: Kind = kind_of(tokenizer, whose)
        self.bytes: list[bytes | None] = bytes_of_tokens(tokenizer, self.kind)
        # Of the bytes of each id; -1 where it stands for no text.
        self.lengths: IntArray = np.array(
            [-1 if one is None else len(one) for one in self.bytes], dtype=np.int64
        )
        self.special = {
            str(token): tokenizer.convert_tokens_to_ids(str(token))
            for token in sorted(
                {*map(str, tokenizer.all_special_tokens)}
                | {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
            )
        }
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self._id_of_byte = {
            one[0]: token_id
            for token_id, one in reversed(list(enumerate(self.bytes)))
            if one is not None and len(one) == 1
        }
        self._raw, self._ids_of_added = _without_surroundings(tokenizer, self.kind)

    def encode(self, data: bytes) -> list[int]:
        """The ids of some bytes; of characters that are cut off or broken, as of their bytes."""
        try:
            return self._encode_text(data.decode())[0]
        except UnicodeDecodeError:
            if self.kind.name == "byte-level":
                return self._encode_broken(data)
        ids: list[int] = []  # no token of SentencePiece goes across a byte that is no character
        for good, bad in split_broken(data):
            ids += self._encode_text(good.decode())[0] if good else []
            ids += [self._id_of_byte[byte] for byte in bad]
        return ids

    def first(self, data: bytes) -> int:
        """The first id of the encoding of some bytes; -1 if that does not stand for them."""
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
        """Ids, and the number of each one's word (pre-token)."""
        encoded = self._raw.encode(text, add_special_tokens=False)
        ids = encoded.ids
        if self._ids_of_added:
            ids = [self._ids_of_added.get(token_id, token_id) for token_id in ids]
        return ids, encoded.word_ids if self.kind.name == "byte-level" else []

    def _encode_broken(self, data: bytes) -> list[int]:
        """As `encode`: words are those of the completed text; those that were not whole are cut."""
        as_word = self._encode_word(data)
        if len(as_word) == 1:  # a token that is no whole characters, as there are some thousand
            return as_word
        text, origin = complete(data)
        ids: list[int] = []
        place = 0
        for _, word in itertools.groupby(zip(*self._encode_text(text), strict=True), _word_of):
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


def _word_of(pair: tuple[int, int | None]) -> int | None:
    return pair[1]


def _without_surroundings(tokenizer: Any, kind: Kind) -> tuple[Any, dict[int, int]]:
    """A tokenizers' object without special tokens, prefixes and limits, on the same model.

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
            raw.add_tokens(
                [
                    AddedToken(
                        added.content,
                        single_word=added.single_word,
                        lstrip=added.lstrip,
                        rstrip=added.rstrip,
                        normalized=added.normalized,
                        special=False,
                    )
                ]
            )
            ids[raw.token_to_id(added.content)] = token_id
    return raw, {a: b for a, b in ids.items() if a is not None and a != b}
