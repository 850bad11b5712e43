r"""Finds what a chat template writes in the text of documents.

A batch holds token ids, not messages. So the template is rendered for many conversations of known
words. The text between these words is the template's: for ChatML, `<|im_start|>user\n`.
These patterns are then searched in the text of each document. They are searched in text, not in
ids: a line feed of the template may share a token with the message next to it.
"""

from __future__ import annotations

import functools
import logging
import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .spelling import Spelling
from .template_probes import CONTENT, DATE, ROLE, TemplateProbes

logger = logging.getLogger("toedit_collate")

BETWEEN = "\0"  # separates documents
# Signs in a pattern: a role, a date, and the border to what must follow the match.
_ROLE, _DATE, _AHEAD = "\ue000", "\ue001", "\ue002"
_SLOT = re.compile(f"([{_ROLE}{_DATE}])")
_IN_SLOT = {_ROLE: r"[\w.-]{1,32}", _DATE: r"[^\n<\0]{1,48}?"}
_WORD = re.compile(r"[^\W\d_]{2}")
_MARK = re.compile(r"[^\w\s\"'{}\[\]():,\ue000-\ue002]")
# What JSON writes around its values, and words of its schemas. Data may contain these, too.
_BEFORE_JSON, _AFTER_JSON = "\"'{[(:, ", "\"'}]), "
_OF_JSON = {
    "arguments", "call", "content", "description", "function", "id", "name", "object", "output",
    "parameters", "properties", "required", "result", "string", "type",
}  # fmt: skip
_MAX_EDGE = 64  # a document may be cut within so many characters of a pattern
_KNOWN: weakref.WeakKeyDictionary[Any, tuple[Any, ChatPatterns]] = weakref.WeakKeyDictionary()


def special_token_ids(tokenizer: Any) -> set[int]:
    """Ids of special tokens and of added tokens that the chat template writes; none for None."""
    if tokenizer is None:
        return set()
    ids = set(tokenizer.all_special_ids)
    template = "".join(_sources(tokenizer))
    for token_id, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        # Some tokenizers have tokens for runs of blanks, which a template's source has, too.
        if token.special or (token.content.strip() and token.content in template):
            ids.add(token_id)
    return ids


def _sources(tokenizer: Any) -> list[str]:
    template = getattr(tokenizer, "chat_template", None) or ""
    return list(map(str, template.values() if isinstance(template, dict) else [template]))


@dataclass(frozen=True)
class ChatPatterns:
    """The texts that a chat template writes."""

    patterns: tuple[str, ...] = ()  # texts with slots, the longest first
    # texts that count only at the end of a document, such as a line feed
    tails: tuple[str, ...] = ()
    # what a document can begin and end with if it was cut inside a pattern
    begins: frozenset[str] = frozenset()
    ends: frozenset[str] = frozenset()

    @classmethod
    def of(cls, tokenizer: Any) -> ChatPatterns:
        """The patterns of a tokenizer's templates, cached; empty where none can be rendered."""
        sources = _sources(tokenizer)
        if not any(sources):
            return cls()
        key = (sources, len(tokenizer), tokenizer.all_special_ids)
        known = _KNOWN.get(tokenizer)
        if known is None or known[0] != key:
            known = _KNOWN[tokenizer] = key, _find_patterns(tokenizer, sources)
        return known[1]

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where a text is the template's, as (begin, end) in characters.

        `BETWEEN` comes before each document and after the last; special tokens are their names.
        """
        return (m.span() for expression in self._expressions for m in expression.finditer(text))

    def edges(self, text: str, begin: int, end: int, text_end: int) -> Iterator[tuple[int, int]]:
        """As `spans`, at the ends of the document [begin, end), which may cut a pattern.

        `text_end` is where its text ends, before the special tokens at its end.
        """
        lengths = range(min(_MAX_EDGE, end - begin), 1, -1)
        yield begin, begin + next((n for n in lengths if text[begin : begin + n] in self.begins), 0)
        yield end - next((n for n in lengths if text[end - n : end] in self.ends), 0), end
        for tail in self.tails:
            if text.endswith(tail, begin, text_end):
                yield text_end - len(tail), text_end

    @functools.cached_property
    def _expressions(self) -> list[re.Pattern[str]]:
        """One expression for fixed texts and one for texts with slots; both prefer long matches."""
        kinds: tuple[list[str], list[str]] = [], []
        for pattern in self.patterns:
            kinds[bool(_SLOT.search(pattern))].append(_as_expression(pattern))
        return [re.compile("|".join(kind)) for kind in kinds if kind]


def _as_expression(pattern: str) -> str:
    written, _, ahead = pattern.partition(_AHEAD)
    expression = "".join(_IN_SLOT.get(part, re.escape(part)) for part in _SLOT.split(written))
    return expression + (f"(?={re.escape(ahead)})" if ahead else "")


def _find_patterns(tokenizer: Any, sources: list[str]) -> ChatPatterns:
    from jinja2 import TemplateError

    segments: set[tuple[str, bool, bool]] = set()
    for source in sources:
        try:
            probes = TemplateProbes(source, tokenizer)
        except TemplateError as error:
            logger.debug("chat template not understood: %s", error)
            continue
        segments.update((text, True, True) for text in probes.constants)
        for rendered in probes.renderings():
            pieces = CONTENT.split(rendered)
            last = len(pieces) - 1
            segments.update((text, n > 0, n < last) for n, text in enumerate(pieces) if text)
    spelling = Spelling.of(tokenizer)
    names = spelling.names(sorted(special_token_ids(tokenizer)), tokenizer)
    special = re.compile("(" + "|".join(map(re.escape, names)) + ")" if names else "((?!))")
    patterns: set[str] = set()
    tails: set[str] = set()
    for text, after_content, before_content in segments:
        text = _as_spelled(spelling, tokenizer, text, after_content, before_content)
        for word, slot in ((ROLE, _ROLE), (DATE, _DATE)):
            text = re.sub(word, slot, text, flags=re.IGNORECASE)
        if _is_schema(text, sources):
            continue
        parts = special.split(text)
        if len(parts) == 1 and not _is_distinct(text):
            tails.update([] if before_content else parts)
            parts = [text if after_content else BETWEEN + text]
        patterns.update(_patterns_of(parts))
    begins, ends = _cut_patterns(patterns)
    patterns, tails = _without_special_cases(patterns - {""}), tails - {""}
    return ChatPatterns(_longest_first(patterns), _longest_first(tails), begins, ends)


def _longest_first(texts: set[str]) -> tuple[str, ...]:
    return tuple(sorted(texts, key=lambda text: (-len(text), text)))


def _as_spelled(
    spelling: Spelling, tokenizer: Any, text: str, after_content: bool, before_content: bool
) -> str:
    """A text as its tokens spell it: some tokenizers add blanks, or change letters."""
    mark = "qzc"
    framed = mark * after_content + text + mark * before_content
    spelled = spelling.text(framed, tokenizer)
    begin = spelled.find(mark) + len(mark) if after_content else 0
    end = spelled.rfind(mark) if before_content else len(spelled)
    if (mark in spelled) != (mark in framed) or begin > end:  # the tokenizer can't spell the mark
        return text
    return spelled[begin:end]


def _patterns_of(parts: list[str]) -> Iterator[str]:
    """The patterns of a segment: texts with the names of special tokens between them."""
    first, rest = parts[0], parts[1:]
    for text in _without_json(first):
        if _is_distinct(text):
            yield text
        if rest and text:
            yield text + _AHEAD + rest[0]
    for name, text, following in zip(rest[::2], rest[1::2], [*rest, ""][2::2], strict=True):
        if not text:
            continue
        if not _SLOT.match(text[-1]):
            yield from (name + some for some in _without_json(text))
        elif following:
            yield name + text + _AHEAD + following


def _without_json(text: str) -> set[str]:
    """A text with and without the JSON around a value, which may take any form."""
    return {text, text.lstrip(_AFTER_JSON), text.rstrip(_BEFORE_JSON)} if '"' in text else {text}


def _without_special_cases(patterns: set[str]) -> set[str]:
    """Leave out what a pattern with slots matches, too."""
    slotted = [p for p in patterns if _SLOT.search(p) and _AHEAD not in p]
    general = [re.compile(_as_expression(p)) for p in slotted]
    return {p for p in patterns if _SLOT.search(p) or not any(g.fullmatch(p) for g in general)}


def _cut_patterns(patterns: set[str]) -> tuple[frozenset[str], frozenset[str]]:
    """The ends and beginnings of patterns, of two characters or more, up to their slots."""
    begins: set[str] = set()
    ends: set[str] = set()
    for pattern in patterns:
        first, *others = _SLOT.split(pattern.partition(_AHEAD)[0])
        last = others[-1] if others else first
        begins.update(last[-n:] for n in range(2, min(len(last), _MAX_EDGE) + 1))
        cuts = {first[:n] for n in range(2, min(len(first), _MAX_EDGE) + 1)}
        ends.update(cut for cut in cuts - ends if _is_distinct(cut))
    return frozenset(begins), frozenset(ends)


def _is_distinct(text: str) -> bool:
    """Whether a text alone identifies the template, as a line feed or a colon does not."""
    if _ROLE in text and re.match(rf"[^\n\0]?{_ROLE}", text):
        return False  # it would match any word
    is_line = re.search(rf"[\n\0] ?{_ROLE} ?[^\w\s]", text)  # "name: ", at the beginning of a line
    return bool(is_line or _WORD.search(text)) or len(_MARK.findall(text)) > 2


def _is_schema(text: str, sources: list[str]) -> bool:
    """Whether a text belongs to a tool's description in JSON, which comes from the data."""
    words = set(re.findall(r"[^\W\d_]{2,}", text))
    bare = text.strip(_BEFORE_JSON + _AFTER_JSON + "\n")
    return '"' in text and words <= _OF_JSON and not any(bare in source for source in sources)
