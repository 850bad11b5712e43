"""Kinds of tokens as a reader sees them: digits, punctuation, word beginnings, code, ..."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..tokens.documents import find_documents
from ..tokens.protection import Protection
from ..tokens.rules import find_spans

# A token has one of these seven forms. A token in code or markup counts there as well.
FORMS = (
    "digits", "punctuation", "whitespace", "word beginnings", "word pieces", "capitalised words",
    "template",
)  # fmt: skip
REGIONS = ("code", "markup")
KINDS = (*FORMS, *REGIONS)
MEANING = {
    "digits": "a number, or part of a number",
    "punctuation": "marks and symbols without letters or digits",
    "whitespace": "only spaces, line breaks or indentation",
    "word beginnings": "a lower-case word, or its first piece",
    "word pieces": "a later piece of a word",
    "capitalised words": "a word with a capital letter, or its first piece",
    "template": "special tokens and text that the chat template adds",
    "code": "fenced or indented blocks, which protect='code' leaves alone",
    "markup": "tags, Markdown and reST marks, links, LaTeX commands",
}
Bits = npt.NDArray[np.uint16]

_MARKUP = re.compile(
    r"</?[A-Za-z][^<>\n]{0,200}>|<!--.*?-->|&[a-z]{2,8};"  # HTML
    r"|^#{1,6}(?= )|^[-*+](?= )|^>|\*\*|__|^[=\-~^\"`]{4,}$|^\|.*\|$"  # Markdown and reST
    r"|!?\[(?=[^\]\n]*\]\()|(?<=\])\([^)\s]*\)|https?://\S+"
    r"|^\.\. [\w-]+::|:[a-z]+:(?=`)|\\[A-Za-z]+|\$\$",
    re.M,
)


@dataclass(frozen=True)
class Text:
    """A document as text.

    Attributes:
        pieces: the text that each token adds; joined, they are the document.
        kinds: (T,) uint16, bit k is set if the token is of `KINDS[k]`.
    """

    pieces: list[str]
    kinds: Bits

    def __str__(self) -> str:
        return "".join(self.pieces)


class Reader:
    """Turns token ids into text and finds their kinds.

    Args:
        tokenizer: with its special tokens and chat template.

    Raises:
        ValueError: there is no tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer is None:
            raise ValueError(
                "the prior has no tokenizer, which is required to show tokens as text; pass one: "
                "Prior(model, tokenizer)"
            )
        self.tokenizer = tokenizer
        self._protection = Protection.of(tokenizer)
        self._known: dict[int, str] = {}
        self._anchor = self._find_anchor()

    def read(self, ids: list[int]) -> Text:
        """Text and kinds of one document's tokens."""
        pieces = self.pieces(ids)
        tokens = torch.tensor(ids, dtype=torch.int64)
        documents = find_documents(tokens.unsqueeze(0), None, None)
        template = self._protection.mask(tokens, documents)
        return Text(pieces, find_kinds(pieces, template.numpy()))

    def pieces(self, ids: list[int]) -> list[str]:
        """The text that each token adds."""
        pieces = [self.piece(token) for token in ids]
        # A character that spans several tokens: decode the text up to each token, which is slower.
        if "\N{REPLACEMENT CHARACTER}" in "".join(pieces):
            return token_pieces(self.tokenizer, ids)
        return pieces

    def piece(self, token: int) -> str:
        """The text that a token adds, decoded without its neighbours."""
        known = self._known.get(token)
        if known is None:
            # Decoded alone, a SentencePiece word loses the space in front of it.
            text = self._decode([*self._anchor, token])
            known = text[len(self._decode(self._anchor)) :]
            self._known[token] = known
        return known

    def _find_anchor(self) -> list[int]:
        """A token to decode others after, so that they read as in the middle of a text."""
        ids = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        return list(ids[-1:])

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def find_kinds(pieces: list[str], template: npt.NDArray[np.bool_]) -> Bits:
    r"""The kinds of tokens: T pieces of text, and a (T,) mask of the template -> (T,) uint16.

    Example:
        >>> pieces = ["The", " sum", " is", " 4", "2", ".", "\n"]
        >>> bits = find_kinds(pieces, np.zeros(7, bool))
        >>> [[kind for k, kind in enumerate(KINDS) if bit >> k & 1][0] for bit in bits][::3]
        ['capitalised words', 'digits', 'whitespace']
    """
    kinds = np.zeros(len(pieces), np.uint16)
    before = ""
    for i, piece in enumerate(pieces):
        form = "template" if template[i] else _form(piece, before)
        kinds[i] = 1 << KINDS.index(form)
        before = piece[-1:] or before
    # For code and markup, text of the template ends a line.
    text = "".join("\n" * len(p) if of else p for p, of in zip(pieces, template, strict=True))
    ends = np.cumsum([len(piece) for piece in pieces])
    begins = ends - [len(piece.lstrip(" ")) or len(piece) for piece in pieces]
    spans_of = {
        "code": find_spans("code", text),
        "markup": (found.span() for found in _MARKUP.finditer(text)),
    }
    for name, spans in spans_of.items():
        inside = np.zeros(len(text) + 1, np.int64)
        for begin, end in spans:
            inside[begin : begin + len(text[begin:end].rstrip())] = 1
        covered = np.concatenate([[0], np.cumsum(inside)])
        kinds[(covered[ends] > covered[begins]) & ~template] |= 1 << KINDS.index(name)
    return kinds


def _form(piece: str, before: str) -> str:
    bare = piece.strip()
    if not bare:
        return "whitespace" if piece else "word pieces"
    if not any(map(str.isalnum, bare)):
        return "punctuation"
    if not any(map(str.isalpha, bare)):
        return "digits"
    if not piece[0].isspace() and before.isalnum() and bare[0].isalnum():
        return "word pieces"
    first = next(letter for letter in bare if letter.isalpha())
    return "capitalised words" if first.isupper() else "word beginnings"


def token_pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text that each token adds to the text before it.

    A token that ends inside a character adds nothing; the token that completes it adds all of it.
    """
    pieces: list[str] = []
    shown = ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        if end < len(ids) and text.endswith("\N{REPLACEMENT CHARACTER}"):
            pieces.append("")
            continue
        pieces.append(text[len(shown) :])
        shown = text
    return pieces
