"""The bytes of each id of a tokenizer, and the kinds of tokenizers that have them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..spelling import BLANK, BYTE_OF_CHARACTER

_KEEPING = {"ByteLevel", "Split", "Digits", "Punctuation", "UnicodeScripts"}  # pre-tokenizers


@dataclass(frozen=True)
class Kind:
    """How a tokenizer turns text into tokens."""

    name: str  # "byte-level" (GPT-2's alphabet of bytes) or "sentencepiece" (with byte fallback)
    # before which texts it adds a blank: "never", "first" (of a document) or "always" (also
    # after special tokens)
    prefix: str
    prefix_before_blank: bool  # whether it does so even if the text begins with a blank
    # its normalizer without that prefix, as JSON of tokenizers; or None
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None  # its pre-tokenizer without that prefix, as JSON; or None

    def prefixes(self, is_first: bool) -> bool:
        """Whether a text may get a blank in front; `is_first`: the first of its document."""
        return self.prefix == "always" or (self.prefix == "first" and is_first)


def kind_of(tokenizer: Any, whose: str) -> Kind:
    """Find out how a tokenizer works; `whose` is "trainee's" or "prior's", for messages.

    Raises:
        ValueError: its tokens do not stand for bytes, or it changes the text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(whose, f"{type(tokenizer).__name__}, which is not a fast tokenizer")
    model = backend.model
    name = type(model).__name__
    if name not in ("BPE", "Unigram"):
        raise _refused(whose, f"{type(tokenizer).__name__}, a {name} tokenizer")
    for flag in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if getattr(model, flag, None):
            raise _refused(whose, f"a BPE tokenizer with {flag}={getattr(model, flag)!r}")
    steps = _steps(backend.normalizer, "normalizers")
    splits = _steps(backend.pre_tokenizer, "pretokenizers")
    for step in steps:
        if not (step["type"] == "NFC" or _is_prepend(step) or _is_blank_sign(step)):
            raise _refused(whose, f"a tokenizer whose normalizer {step['type']} changes the text")
    if any(split["type"] == "ByteLevel" for split in splits) and name == "BPE":
        return _byte_level(steps, splits, whose)
    has_bytes = all(model.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
    if not has_bytes or not getattr(model, "byte_fallback", True):
        raise _refused(whose, f"a {name} tokenizer without tokens for single bytes")
    return _sentencepiece(steps, splits, whose)


def _byte_level(steps: list[Any], splits: list[Any], whose: str) -> Kind:
    if any(step["type"] != "NFC" for step in steps):
        raise _refused(whose, "a byte-level tokenizer whose normalizer changes blanks")
    prefix, kept = False, []
    for split in splits:
        if split["type"] not in _KEEPING or split.get("behavior") == "Removed":
            raise _refused(whose, f"a tokenizer whose pre-tokenizer {split['type']} removes text")
        if split["type"] == "ByteLevel":
            prefix |= split["add_prefix_space"]
            split = {**split, "add_prefix_space": False}
        kept.append(split)
    return Kind(
        name="byte-level",
        prefix="always" if prefix else "never",
        prefix_before_blank=False,
        normalizer=_sequence(steps, "normalizers"),
        pre_tokenizer=_sequence(kept, "pretokenizers"),
    )


def _sentencepiece(steps: list[Any], splits: list[Any], whose: str) -> Kind:
    prepends = any(_is_prepend(step) for step in steps)
    prefix = "always" if prepends else "never"
    signs = any(_is_blank_sign(step) for step in steps)
    kept = []
    for split in splits:
        if split["type"] == "Metaspace" and split["replacement"] == BLANK:
            signs = True
            if not prepends:
                prefix = split.get("prepend_scheme", "always")
            kept.append({**split, "prepend_scheme": "never"})
        elif split["type"] in ("Split", "Digits", "Punctuation") and (
            split.get("behavior") != "Removed"
        ):
            kept.append(split)
        else:
            raise _refused(whose, f"a tokenizer whose pre-tokenizer {split['type']} removes text")
    if not signs:
        raise _refused(whose, "a tokenizer with byte fallback that does not write blanks as ▁")
    return Kind(
        name="sentencepiece",
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
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(BLANK, " ").encode()


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


def _refused(whose: str, what: str) -> ValueError:
    return ValueError(
        f"the {whose} tokenizer is {what}: alignment supports only byte-level BPE and "
        "SentencePiece with byte fallback, whose tokens stand for bytes; use a prior with the "
        "trainee's own tokenizer"
    )
