"""The expressions behind the named rules of `EditPolicy.protect`.

In the text, `BORDER` replaces special tokens: no sentence, formula or block of code continues past
it. The time of each rule is proportional to the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ..policy import REGEX

# A code point that is no character, so that no text has it, and a line feed.
BORDER = "\ufdd0\n"
Span = tuple[int, int]

# Line ends other than "\n", each replaced by one character, so that spans stay where they are.
_LINE_ENDS = str.maketrans("\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", "\n" * 9)

# Decimal digits of any script; raised and lowered ones, fractions, Roman and circled numbers.
_DIGIT = (
    r"[\d\u00b2\u00b3\u00b9\u00bc-\u00be\u2070\u2074-\u2079\u2080-\u2089\u2150-\u218b"
    r"\u2460-\u249b\u24ea-\u24ff\u2776-\u2793]"
)
# Between digits: points, commas (Latin, Arabic, full width), colons, slashes, apostrophes, low
# lines, narrow and hard blanks; raised and lowered signs.
_BETWEEN = (
    r"[.,:'\u2019_\u00b7/\u2044\u066b\u066c\u060c\uff0e\uff0c\u00a0\u2009\u202f"
    r"\u207a\u207b\u208a\u208b]"
)
_NUMBERS = re.compile(
    r"0[xX][0-9a-fA-F]+(?:_[0-9a-fA-F]+)*|0[bB][01]+(?:_[01]+)*|0[oO][0-7]+(?:_[0-7]+)*"
    r"|(?:(?<![\w.])[+\-\u2212]|[\u207a\u207b\u208a\u208b])?"
    rf"{_DIGIT}+(?:{_BETWEEN}{_DIGIT}+)*(?:[eE][+\-\u2212]?\d+)?[%\u2030\u066a\uff05]?"
)
# Addresses, of mail as well; punctuation after them belongs to the sentence. The lengths of
# schemes and names are bounded, so that a long run of dots and hyphens is not read again and again.
_URLS = re.compile(
    r"(?:\b[a-zA-Z][a-zA-Z0-9+.-]{0,30}://|\bwww\.)"
    r"[^\s<>\"'`\ufdd0\u3000-\u303f\uff00-\uff0f\uff1a-\uff20]*"
    r"[^\s<>\"'`\ufdd0\u3000-\u303f\uff00-\uff0f\uff1a-\uff20.,;:!?)\]}]"
    r"|\b[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+"
)
# Between fences, which may be open at the end; or four blanks or a tab after an empty line.
_CODE = re.compile(
    r"(?P<fenced>^[ ]{0,3}(?P<fence>`{3,}|~{3,})[^`\n\ufdd0]*(?:\n|\Z|(?=\ufdd0))"
    r"(?:[^\ufdd0]*?^[ ]{0,3}(?P=fence)[`~]*[ \t]*$|[^\ufdd0]*))"
    r"|(?:\A|\ufdd0\n|\n[ \t]*\n)"
    r"(?P<indented>(?:(?:[ ]{4}|\t)[ \t]*[^\s\ufdd0][^\n\ufdd0]*(?:\n|\Z|(?=\ufdd0))"
    r"(?:[ \t]*\n)*)+)",
    re.MULTILINE,
)
# Formulas in $, $$, \( \), \[ \] and environments; commands with arguments. A price is no formula:
# no blank follows "$" or precedes the closing one, and no digit follows the closing one. Between $$
# there is no empty line, as in TeX: so a lone "$$" does not pair with that of a later formula.
_LATEX = re.compile(
    r"(?P<bracket>\\begin\{[^{}\n]+\}|(?<!\\)\\[\[(])"
    r"|(?<!\\)\$\$(?:[^$\n\ufdd0]|\$(?!\$)|\n(?![ \t]*\n))+\$\$"
    r"|(?<![\\$\w])\$(?=[^\s$])(?:\\.|[^$\\\n\ufdd0])*?(?<!\s)\$(?![\d$])"
    r"|\\[a-zA-Z]+\*?(?:\[[^\]\n\ufdd0]{0,200}\])?"
    r"(?:\{(?:[^{}\n\ufdd0]|\{[^{}\n\ufdd0]*\})*\})+"
)
_COMMAND = re.compile(r"\\begin(?:\{(?:[^{}\n\ufdd0]|\{[^{}\n\ufdd0]*\})*\})+")
_BRACKET = re.compile(r"\\(?P<side>begin|end)\{(?P<name>[^{}\n]+)\}|(?<!\\)\\[\[(\])]|\ufdd0")
_PAIRS = {"\\]": "\\[", "\\)": "\\("}
# A word that follows another word, or a sign that does not end a sentence, on the same line. The
# accent of a letter may follow as a character of its own.
_IN_WORD = r"[\w'\u2019\u0300-\u036f-]"
_INSIDE = re.compile(
    r"(?<=[\w\u0300-\u036f,;&/)\]'\u2019-])[ \t]+[(\"'\u201c\u2018]?"
    rf"(?P<word>[^\W\d_]{_IN_WORD}*)"
)
_ABBREVIATED = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|Sr|Jr|[^\W\d_])\.[ \t]+"
    rf"(?P<word>[^\W\d_]{_IN_WORD}*)"
)
_PRONOUN = re.compile(r"I(?:['\u2019].*)?")


def _spans(expression: re.Pattern[str]) -> Callable[[str], Iterator[Span]]:
    return lambda text: (match.span() for match in expression.finditer(text))


def _code(text: str) -> Iterator[Span]:
    for match in _CODE.finditer(text):
        yield match.span("indented" if match["fenced"] is None else "fenced")


def _latex(text: str) -> Iterator[Span]:
    """Formulas and commands; a bracket without its end before the next border is text."""
    end_of = _closed_brackets(text)
    place = 0
    while match := _LATEX.search(text, place):
        end: int | None = match.end()
        if match["bracket"]:
            end = end_of.get(match.start())
            if end is None and (command := _COMMAND.match(text, match.start())):
                end = command.end()
        if end is not None:
            yield match.start(), end
        place = match.end() if end is None else end


def _closed_brackets(text: str) -> dict[int, int]:
    """Where closed brackets begin -> where they end; only environments can be nested."""
    opened: dict[str, list[int]] = {}
    end_of = {}
    for match in _BRACKET.finditer(text):
        name = match["name"] or match[0]
        if name == "\ufdd0":
            opened.clear()
        elif match["side"] == "begin":
            opened.setdefault(name, []).append(match.start())
        elif name in _PAIRS.values():
            opened[name] = [match.start()]
        elif starts := opened.get(_PAIRS.get(name, name)):
            end_of[starts.pop()] = match.end()
    return end_of


def _names(text: str) -> Iterator[Span]:
    """Words that begin with a capital inside a sentence."""
    for expression in (_INSIDE, _ABBREVIATED):
        for match in expression.finditer(text):
            word = match["word"]
            if (word[0].isupper() or word[0].istitle()) and not _PRONOUN.fullmatch(word):
                yield match.span("word")


FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "code": _code,
    "latex": _latex,
    "names": _names,
    "numbers": _spans(_NUMBERS),
    "urls": _spans(_URLS),
}


def find_spans(rule: str, text: str) -> Iterator[Span]:
    """Where a rule applies in the text of a document, as (begin, end) in characters.

    Example:
        >>> text = "We met Ann, who is 42."
        >>> [text[a:b] for rule in ("names", "numbers") for a, b in find_spans(rule, text)]
        ['Ann', '42']
    """
    if rule.startswith(REGEX):
        return _spans(re.compile(rule.removeprefix(REGEX)))(text)
    return FINDERS[rule](text.replace("\r\n", " \n").translate(_LINE_ENDS))
