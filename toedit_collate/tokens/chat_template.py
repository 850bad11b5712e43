r"""What a chat template writes, found in the text of documents.

A batch holds token ids, not messages. So the template is rendered once for many conversations of
known words, and what stands between these words is the template's text: for ChatML, for example,
`<|im_start|>user\n`. These patterns are then searched in the text of each document. Text, not ids:
at the border of a message, a line feed of the template may be part of a token of the message.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .spelling import Spelling
from .template_probes import CONTENT, DATE, ROLE, TemplateProbes

BETWEEN = "\0"  # documents
# In a pattern: a role, a date; and what must follow, but is no part of the match.
_ROLE, _DATE, _AHEAD = "\ue000", "\ue001", "\ue002"
_SLOT = re.compile(f"([{_ROLE}{_DATE}])")
_IN_SLOT = {_ROLE: r"[\w.-]{1,32}", _DATE: r"[^\n<\0]{1,48}?"}
_WORD = re.compile(r"[^\W\d_]{2}")
_MARK = re.compile(r"[^\w\s\"'{}\[\]():,\ue000-\ue002]")
# What JSON has around its values, and words of its schemas: data may have them, too.
_BEFORE_JSON, _AFTER_JSON = "\"'{[(:, ", "\"'}]), "
_OF_JSON = {
    "arguments", "call", "content", "description", "function", "id", "name", "object", "output",
    "parameters", "properties", "required", "result", "string", "type",
}  # fmt: skip
_MAX_EDGE = 64  # characters of a pattern in which a document that was cut may begin or end
_Texts = dict[str, list[str]]
_KNOWN: weakref.WeakKeyDictionary[Any, tuple[Any, ChatPatterns]] = weakref.WeakKeyDictionary()


def special_token_ids(tokenizer: Any) -> set[int]:
    """Ids of special tokens, and of added tokens that the chat template writes.

    Args:
        tokenizer: None: no token is known to be special.
    """
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
    """The texts that a chat template writes.

    Attributes:
        patterns: texts with slots, the longest first.
        tails: texts that count at the end of a document only: a line feed, for example.
    """

    patterns: tuple[str, ...] = ()
    tails: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any) -> ChatPatterns:
        """Those of a tokenizer's template, or templates; made once for each.

        A template that can't be rendered, or a tokenizer without one, has none.
        """
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

        Args:
            text: of documents, with a `BETWEEN` before each and behind the last; special tokens
                stand in it by their names.
        """
        return (m.span() for expression in self._expressions for m in expression.finditer(text))

    def edges(self, text: str, begin: int, end: int, text_end: int) -> Iterator[tuple[int, int]]:
        """As `spans`, where one of the documents begins or ends inside of a pattern.

        Args:
            text: as for `spans`.
            begin: of the document in the text.
            end: of the document.
            text_end: where its last text ends: before the special tokens behind it.
        """
        begins, ends, *in_slot = self._cuts
        known = begins.get(text[begin : begin + 2], ())
        yield begin, begin + next((len(c) for c in known if text.startswith(c, begin, end)), 0)
        known = ends.get(text[max(begin, end - 2) : end], ())
        yield end - next((len(c) for c in known if text.endswith(c, begin, end)), 0), end
        for found in (
            in_slot[0].match(text, begin, end),
            in_slot[1].search(text, max(begin, end - 2 * _MAX_EDGE), end),
        ):
            if found:
                yield found.span()
        for tail in self.tails:
            if text.endswith(tail, begin, text_end):
                yield text_end - len(tail), text_end

    @functools.cached_property
    def _expressions(self) -> list[re.Pattern[str]]:
        """One for fixed texts, one for those with slots: of each, the longest that fits counts."""
        fixed = [p for p in self.patterns if not _SLOT.search(p)]
        slotted = [p for p in self.patterns if _SLOT.search(p)]
        return [
            re.compile("|".join(map(_as_expression, some))) for some in (fixed, slotted) if some
        ]

    @functools.cached_property
    def _cuts(self) -> tuple[_Texts, _Texts, re.Pattern[str], re.Pattern[str]]:
        """With what a document can begin, and end, that is cut inside of a pattern.

        Texts are found by their first two characters, or their last two.
        """
        begins: set[str] = set()
        ends: set[str] = set()
        in_first, in_last = ["(?!)"], ["(?!)"]  # in the text before a slot, and behind it
        for pattern in (known.partition(_AHEAD)[0] for known in self.patterns):
            first, *others = _SLOT.split(pattern)
            last = others[-1] if others else first
            begins.update(last[-n:] for n in range(2, min(len(last), _MAX_EDGE) + 1))
            cuts = [first[:n] for n in range(2, min(len(first), _MAX_EDGE) + 1)]
            ends.update(cut for cut in cuts if _is_distinct(cut))
            if others and re.search(r"[^\w\s]", last):
                left = "|".join(re.escape(first[n:]) for n in range(len(first) + 1))
                in_first.append(f"(?:{left})" + _as_expression("".join(others)))
            if others and _is_distinct(first):
                left = "|".join(re.escape(last[:n]) for n in range(len(last), -1, -1))
                in_last.append(_as_expression(pattern.removesuffix(last)) + f"(?:{left})")
        by_pair: tuple[_Texts, _Texts] = {}, {}
        for some, texts, pair in zip(
            by_pair, (begins, ends), (slice(2), slice(-2, None)), strict=True
        ):
            for text in sorted(texts, key=len, reverse=True):
                some.setdefault(text[pair], []).append(text)
        expressions = "|".join(in_first), f"(?:{'|'.join(in_last)})\\Z"
        return *by_pair, re.compile(expressions[0]), re.compile(expressions[1])


def _as_expression(pattern: str) -> str:
    written, _, ahead = pattern.partition(_AHEAD)
    expression = "".join(_IN_SLOT.get(part, re.escape(part)) for part in _SLOT.split(written))
    return expression + (f"(?={re.escape(ahead)})" if ahead else "")


def _find_patterns(tokenizer: Any, sources: list[str]) -> ChatPatterns:
    segments: set[tuple[str, bool, bool]] = set()
    for source in sources:
        probes = TemplateProbes.of(source, tokenizer.special_tokens_map)
        if probes is None:
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
    patterns, tails = _without_special_cases(patterns - {""}), tails - {""}
    in_order = (tuple(sorted(some, key=lambda t: (-len(t), t))) for some in (patterns, tails))
    return ChatPatterns(*in_order)


def _as_spelled(
    spelling: Spelling, tokenizer: Any, text: str, after_content: bool, before_content: bool
) -> str:
    """A text as its tokens spell it: some tokenizers add blanks, or change letters."""
    mark = "qzc"
    framed = mark * after_content + text + mark * before_content
    spelled = spelling.text(framed, tokenizer)
    begin = spelled.find(mark) + len(mark) if after_content else 0
    end = spelled.rfind(mark) if before_content else len(spelled)
    if (mark in spelled) != (mark in framed) or begin > end:  # a tokenizer that has no such word
        return text
    return spelled[begin:end]


def _patterns_of(parts: list[str]) -> Iterator[str]:
    """The patterns of a segment: texts, and between them the names of special tokens."""
    first, rest = parts[0], parts[1:]
    for text in _without_json(first):
        if _is_distinct(text):
            yield text
        if rest and text:
            yield text + _AHEAD + rest[0]
    for name, text, following in zip(rest[::2], rest[1::2], [*rest, ""][2::2], strict=True):
        if text and _SLOT.match(text[-1]):
            yield from [name + text + _AHEAD + following] * bool(following)
        elif text:
            yield from (name + some for some in _without_json(text))


def _without_json(text: str) -> set[str]:
    """A text, and what is left of it without the JSON around a value, which may have any form."""
    return {text, text.lstrip(_AFTER_JSON), text.rstrip(_BEFORE_JSON)} if '"' in text else {text}


def _without_special_cases(patterns: set[str]) -> set[str]:
    """Leave out what a pattern with slots matches, too: a known role where any is matched."""
    slotted = [p for p in patterns if _SLOT.search(p) and _AHEAD not in p]
    general = [re.compile(_as_expression(p)) for p in slotted]
    return {p for p in patterns if _SLOT.search(p) or not any(g.fullmatch(p) for g in general)}


def _is_distinct(text: str) -> bool:
    """Whether a text alone is known to be the template's, as a line feed or a colon is not."""
    if _ROLE in text and re.match(rf"[^\n\0]?{_ROLE}", text):
        return False  # anything at all, or any word
    is_line = re.search(rf"[\n\0] ?{_ROLE} ?[^\w\s]", text)  # "name: ", at the beginning of a line
    return bool(is_line or _WORD.search(text)) or len(_MARK.findall(text)) > 2


def _is_schema(text: str, sources: list[str]) -> bool:
    """Whether a text is of a tool's description in JSON, which comes from the data."""
    words = set(re.findall(r"[^\W\d_]{2,}", text))
    bare = text.strip(_BEFORE_JSON + _AFTER_JSON + "\n")
    return '"' in text and words <= _OF_JSON and not any(bare in source for source in sources)
