"""What the named rules of `EditPolicy.protect` spare: spans of a text.

A special token stands in the text as `BORDER`: neither a sentence nor a block of code goes on
behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ..policy import REGEX

BORDER = "\x1e\n"
Span = tuple[int, int]

# Digits with their signs, separators, exponents and per cent; hexadecimal.
_NUMBERS = re.compile(
    r"0[xX][0-9a-fA-F]+|(?:(?<![\w.])[+\-\u2212])?\d+(?:[.,:]\d+)*(?:[eE][+-]?\d+)?%?"
)
# Addresses, of mail as well; punctuation behind them belongs to the sentence.
_URLS = re.compile(
    r"(?:\b[a-zA-Z][a-zA-Z0-9+.-]*://|\bwww\.)[^\s<>\"'`\x1e]*[^\s<>\"'`\x1e.,;:!?)\]}]"
    r"|\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
)
# Between fences, which may be open at the end; or four blanks or a tab after an empty line.
_CODE = re.compile(
    r"(?P<fenced>^[ ]{0,3}(?P<fence>`{3,}|~{3,})[^`\n\x1e]*(?:\n|\Z|(?=\x1e))"
    r"(?:[^\x1e]*?^[ ]{0,3}(?P=fence)[`~]*[ \t]*$|[^\x1e]*))"
    r"|(?:\A|\x1e\n|\n[ \t\r]*\n)"
    r"(?P<indented>(?:(?:[ ]{4}|\t)[ \t]*[^\s\x1e][^\n\x1e]*(?:\n|\Z|(?=\x1e))(?:[ \t\r]*\n)*)+)",
    re.MULTILINE,
)
# Formulas in $, $$, \( \), \[ \] and environments; commands with arguments. A price is no formula:
# behind "$" stands no blank, before the closing one none, and behind that no digit.
_LATEX = re.compile(
    r"\\begin\{(?P<name>[^{}\n]+)\}[^\x1e]*?\\end\{(?P=name)\}"
    r"|\\\[[^\x1e]*?\\\]|\\\([^\x1e]*?\\\)|(?<!\\)\$\$[^\x1e]+?\$\$"
    r"|(?<![\\$\w])\$(?=[^\s$])(?:\\.|[^$\\\n\x1e])*?(?<!\s)\$(?![\d$])"
    r"|\\[a-zA-Z]+\*?(?:\[[^\]\n\x1e]*\])?(?:\{(?:[^{}\n\x1e]|\{[^{}\n\x1e]*\})*\})+"
)
# A word on the same line behind another word, or behind what does not end a sentence.
_INSIDE = re.compile(
    r"(?<=[\w,;&/)\]'\u2019-])[ \t]+[(\"'\u201c\u2018]?(?P<word>[^\W\d_][\w'\u2019-]*)"
)
_ABBREVIATED = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|Sr|Jr|[^\W\d_])\.[ \t]+(?P<word>[^\W\d_][\w'\u2019-]*)"
)
_PRONOUN = re.compile(r"I(?:['\u2019].*)?")


def _spans(expression: re.Pattern[str]) -> Callable[[str], Iterator[Span]]:
    return lambda text: (match.span() for match in expression.finditer(text))


def _code(text: str) -> Iterator[Span]:
    for match in _CODE.finditer(text):
        yield match.span("indented" if match["fenced"] is None else "fenced")


def _names(text: str) -> Iterator[Span]:
    """Words that begin with a capital inside a sentence."""
    for expression in (_INSIDE, _ABBREVIATED):
        for match in expression.finditer(text):
            word = match["word"]
            if word[0].isupper() and not _PRONOUN.fullmatch(word):
                yield match.span("word")


FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "code": _code,
    "latex": _spans(_LATEX),
    "names": _names,
    "numbers": _spans(_NUMBERS),
    "urls": _spans(_URLS),
}


def find_spans(rule: str, text: str) -> Iterator[Span]:
    """Where a rule applies in a text, as (begin, end) in characters.

    Args:
        rule: one of `toedit_collate.policy.parse_rules`.
        text: of one document.

    Example:
        >>> text = "We met Ann, who is 42."
        >>> [text[a:b] for rule in ("names", "numbers") for a, b in find_spans(rule, text)]
        ['Ann', '42']
    """
    if rule.startswith(REGEX):
        return _spans(re.compile(rule.removeprefix(REGEX)))(text)
    return FINDERS[rule](text)
