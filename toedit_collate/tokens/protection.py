"""Which tokens are never edited: special ones, the chat template's own, what rules spare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..policy import parse_rules
from .chat_template import BETWEEN, ChatPatterns, special_token_ids
from .documents import Documents
from .rules import Span, find_spans
from .spelling import Spelling, text_of


@dataclass(frozen=True)
class Protection:
    """What tokenizers say must not be edited: their special tokens, and their templates' text.

    Example:
        >>> Protection(frozenset({7})) | Protection(frozenset({8}))
        Protection(special_ids=frozenset({8, 7}), templates=())

    Attributes:
        special_ids: ids that stand for no text; they are not drawn, either.
        templates: what the chat templates write, each with the tokenizer that reads it.
    """

    special_ids: frozenset[int] = frozenset()
    templates: tuple[tuple[ChatPatterns, Any], ...] = ()

    @classmethod
    def of(cls, tokenizer: Any) -> Protection:
        """What a tokenizer says; nothing for None."""
        if tokenizer is None:
            return cls()
        patterns = ChatPatterns.of(tokenizer)
        templates = ((patterns, tokenizer),) if patterns.patterns else ()
        return cls(frozenset(special_token_ids(tokenizer)), templates)

    def __or__(self, other: Protection) -> Protection:
        """What either of two says."""
        known = {patterns for patterns, _ in self.templates}
        added = tuple(one for one in other.templates if one[0] not in known)
        return Protection(self.special_ids | other.special_ids, self.templates + added)

    def mask(self, tokens: Tensor, documents: Documents) -> Tensor:
        """Which tokens are special, or written by a template.

        Args:
            tokens: (M,) int64, of all documents, one after another.
            documents: of the batch.

        Returns:
            (M,) bool.

        Raises:
            ValueError: the tokenizer of a template is not known.
        """
        found = id_mask(tokens, self.special_ids).numpy()
        special = found.copy()
        for patterns, tokenizer in self.templates:
            if tokenizer is None:
                raise ValueError(
                    "the prior's chat template is known, but no tokenizer to read the tokens with; "
                    "pass one: prior.set_tokenizer(tokenizer)"
                )
            spelled = Spelling.of(tokenizer).of_tokens(tokens.tolist(), tokenizer, with_names=True)
            found |= _written(patterns, spelled, documents, special)
        return torch.from_numpy(found)


def _written(
    patterns: ChatPatterns,
    spelled: list[bytes],
    documents: Documents,
    special: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Which of M tokens a template wrote, by the bytes that they stand for: (M,) bool."""
    starts = documents.start.tolist()
    apart: list[bytes] = []  # no text goes on from one document into the next
    for start, length in zip(starts, documents.lengths, strict=True):
        apart.append(BETWEEN.encode())
        apart += spelled[start : start + length]
    text, begin, end = text_of([*apart, BETWEEN.encode()])
    here = np.arange(len(spelled)) + documents.document.numpy() + 1
    begin, end = begin[here], end[here]
    spans = list(patterns.spans(text))
    for start, length in zip(starts, documents.lengths, strict=True):
        last = start + length - 1
        while last > start and special[last]:
            last -= 1
        spans += patterns.edges(text, begin[start], end[start + length - 1], end[last])
    written = np.zeros(len(spelled), dtype=bool)
    for first, last, (span_begin, span_end) in _tokens_of(spans, begin, end):
        # A word of the message may begin with the blank that the template puts before it.
        word = text[span_end : end[last]]
        if word.strip(" ") and not text[max(begin[last], span_begin) : span_end].strip(" "):
            last -= 1
        written[first : last + 1] = True
    return written


def _tokens_of(
    spans: Iterable[Span], begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]
) -> Iterator[tuple[int, int, Span]]:
    """The first and the last of M tokens that have a part in each span of a text.

    Args:
        spans: in characters; empty ones are left out.
        begin: (M,) where the tokens begin.
        end: (M,) where they end.
    """
    spans = [span for span in spans if span[0] < span[1]]
    if spans:
        first_of_span, end_of_span = np.array(spans).T
        first = np.searchsorted(end, first_of_span, side="right").tolist()
        last = (np.searchsorted(begin, end_of_span, side="left") - 1).tolist()
        yield from zip(first, last, spans, strict=True)


def id_mask(tokens: Tensor, ids: Iterable[int]) -> Tensor:
    """Which of (M,) int64 tokens are among some ids: (M,) bool."""
    if tokens.numel() == 0:
        return torch.zeros(0, dtype=torch.bool)
    given, wanted = tokens.numpy(), np.fromiter(ids, dtype=np.int64)
    is_wanted = np.zeros(int(given.max()) + 1, dtype=bool)
    is_wanted[wanted[wanted < len(is_wanted)]] = True
    return torch.from_numpy(is_wanted[given])


def rule_mask(rules: str, tokens: Tensor, documents: Documents, tokenizer: Any) -> Tensor:
    """Which tokens have a part in what named rules spare.

    Args:
        rules: as `EditPolicy.protect` has them, combined by commas.
        tokens: (M,) int64, of all documents, one after another.
        documents: of the batch.
        tokenizer: that made the tokens.

    Returns:
        (M,) bool.

    Raises:
        ValueError: there is no tokenizer.
    """
    if tokenizer is None:
        raise ValueError(
            f"protect={rules!r} reads the text, and no tokenizer is known; give one: "
            "Prior(model, tokenizer), or ToEditCollator(..., tokenizer=tokenizer)"
        )
    # One byte string for each token, then one text for each document: rules see no neighbour.
    spelled = Spelling.of(tokenizer).of_tokens(tokens.tolist(), tokenizer)
    parsed = parse_rules(rules)
    mask = np.zeros(len(spelled), dtype=bool)
    for start, length in zip(documents.start.tolist(), documents.lengths, strict=True):
        text, begin, end = text_of(spelled[start : start + length])
        spans = (span for rule in parsed for span in find_spans(rule, text))
        for first, last, _ in _tokens_of(spans, begin, end):
            mask[start + first : start + last + 1] = True
    return torch.from_numpy(mask)
