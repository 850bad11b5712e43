"""Kinds of tokens as a reader sees them: digits, punctuation, word beginnings, code, ..."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..tokens.documents import find_documents
from ..tokens.protection import Protection
from ..tokens.rules import find_spans

# Each token has one of the first seven kinds. A token in code or markup has that kind as well.
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
KINDS = tuple(MEANING)
Bool = npt.NDArray[np.bool_]

_MARKUP = re.compile(
    r"</?[A-Za-z][^<>\n]{0,200}>|<!--.*?-->|&[a-z]{2,8};"  # HTML
    r"|^#{1,6}(?= )|^[-*+](?= )|^>|\*\*|__|^[=\-~^\"`]{4,}$|^\|.*\|$"  # Markdown and reST
    r"|!?\[(?=[^\]\n]*\]\()|(?<=\])\([^)\s]*\)|https?://\S+"
    r"|^\.\. [\w-]+::|:[a-z]+:(?=`)|\\[A-Za-z]+|\$\$",
    re.M,
)


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
        self._tokenizer = tokenizer
        self._protection = Protection.of(tokenizer)
        self._known: dict[int, str] = {}
        # A token to decode others after, so that they read as in the middle of a text: decoded
        # alone, a SentencePiece word loses the space in front of it.
        self._anchor = list(tokenizer("a", add_special_tokens=False)["input_ids"][-1:])

    def read(self, ids: list[int]) -> tuple[list[str], Bool]:
        """The texts and the kinds of one document's T tokens; see `pieces` and `find_kinds`."""
        pieces = self.pieces(ids)
        tokens = torch.tensor(ids, dtype=torch.int64)
        documents = find_documents(tokens.unsqueeze(0), None, None)
        template = self._protection.mask(tokens, documents)
        return pieces, find_kinds(pieces, template.numpy())

    def pieces(self, ids: list[int]) -> list[str]:
        """The text that each token adds.

        A token that ends inside a character adds nothing; the token that completes the character
        adds all of it.
        """
        pieces = [self.piece(token) for token in ids]
        if "\N{REPLACEMENT CHARACTER}" not in "".join(pieces):
            return pieces
        # A character spans several tokens: decode the text up to each token, which is slower.
        pieces, shown = [], ""
        for end in range(1, len(ids) + 1):
            text = self._decode(ids[:end])
            if end < len(ids) and text.endswith("\N{REPLACEMENT CHARACTER}"):
                pieces.append("")
            else:
                pieces.append(text[len(shown) :])
                shown = text
        return pieces

    def piece(self, token: int) -> str:
        """The text that a token adds, decoded without its neighbours."""
        if token not in self._known:
            text = self._decode([*self._anchor, token])
            self._known[token] = text[len(self._decode(self._anchor)) :]
        return self._known[token]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def find_kinds(pieces: list[str], template: Bool) -> Bool:
    r"""The kinds of tokens: T pieces of text, and a (T,) mask of the template -> (T, K).

    Example:
        >>> pieces = ["The", " sum", " is", " 4", "2", ".", "\n"]
        >>> kinds = find_kinds(pieces, np.zeros(7, bool))
        >>> [KINDS[k] for k in kinds.argmax(-1)][::3]
        ['capitalised words', 'digits', 'whitespace']
    """
    kinds = np.zeros((len(pieces), len(KINDS)), bool)
    before = ""
    for i, piece in enumerate(pieces):
        form = "template" if template[i] else _form(piece, before)
        kinds[i, KINDS.index(form)] = True
        before = piece[-1:] or before
    # For code and markup, text of the template ends a line.
    text = "".join("\n" * len(p) if of else p for p, of in zip(pieces, template, strict=True))
    ends = np.cumsum([len(piece) for piece in pieces])
    begins = ends - [len(piece.lstrip(" ")) or len(piece) for piece in pieces]
    for name, spans in (
        ("code", find_spans("code", text)),
        ("markup", [found.span() for found in _MARKUP.finditer(text)]),
    ):
        inside = np.zeros(len(text) + 1, np.int64)
        for begin, end in spans:
            inside[begin : begin + len(text[begin:end].rstrip())] = 1
        covered = np.concatenate([[0], np.cumsum(inside)])
        kinds[:, KINDS.index(name)] = (covered[ends] > covered[begins]) & ~template
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
