"""Which tokens are never edited: special tokens, the chat template's text, and protected text."""

from __future__ import annotations

import functools
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
from .rules import BORDER, Span, find_spans
from .spelling import Spelling, text_of


@dataclass(frozen=True)
class Protection:
    """What tokenizers protect: their special tokens, and the text of their chat templates."""

    # ids that stand for no text; they are never drawn either
    special_ids: frozenset[int] = frozenset()
    # the patterns of the templates, each with the tokenizer that reads them
    templates: tuple[tuple[ChatPatterns, Any], ...] = ()

    @classmethod
    def of(cls, tokenizer: Any) -> Protection:
        """The protection of a tokenizer; empty for None."""
        if tokenizer is None:
            return cls()
        patterns = ChatPatterns.of(tokenizer)
        templates = ((patterns, tokenizer),) if patterns.patterns else ()
        return cls(frozenset(special_token_ids(tokenizer)), templates)

    def __or__(self, other: Protection) -> Protection:
        """Protect what either of the two protects."""
        known = {patterns for patterns, _ in self.templates}
        added = tuple(one for one in other.templates if one[0] not in known)
        return Protection(self.special_ids | other.special_ids, self.templates + added)

    def mask(self, tokens: Tensor, documents: Documents) -> Tensor:
        """Which of the (M,) tokens are special, or written by a template: (M,) bool.

        Raises:
            ValueError: the tokenizer of a template is not known.
        """
        found = id_mask(tokens, self.special_ids).numpy()
        special = found.copy()
        for patterns, tokenizer in self.templates:
            if tokenizer is None:
                raise ValueError(
                    "the prior's chat template is known, but it has no tokenizer to find its text; "
                    "pass one: prior.set_tokenizer(tokenizer)"
                )
            spelled = Spelling.of(tokenizer).of_tokens(tokens.tolist(), tokenizer)
            found |= _written(patterns, spelled, documents, special)
        return torch.from_numpy(found)


def _written(
    patterns: ChatPatterns,
    spelled: list[bytes],
    documents: Documents,
    special: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """(M,) bool: which tokens a template wrote, given the bytes of each token."""
    pieces: list[bytes] = []  # with a border, so that no pattern spans two documents
    for part in documents.slices:
        pieces += [BETWEEN.encode(), *spelled[part]]
    text, begin, end = text_of([*pieces, BETWEEN.encode()])
    is_token = np.arange(len(spelled)) + documents.document.numpy() + 1  # not a border
    begin, end = begin[is_token], end[is_token]
    spans = list(patterns.spans(text))
    for part in documents.slices:
        last = part.stop - 1
        while last > part.start and special[last]:
            last -= 1
        spans += patterns.edges(text, begin[part.start], end[part.stop - 1], end[last])
    written = np.zeros(len(spelled), dtype=bool)
    for first, last, (span_begin, span_end) in _tokens_of(spans, begin, end):
        # A word of the message may start with the blank that the template writes before it.
        word = text[span_end : end[last]]
        if word.strip(" ") and not text[max(begin[last], span_begin) : span_end].strip(" "):
            last -= 1
        written[first : last + 1] = True
    return written


def _tokens_of(
    spans: Iterable[Span], begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]
) -> Iterator[tuple[int, int, Span]]:
    """The first and last token in each span that is not empty; tokens have [begin, end), (M,)."""
    spans = [span for span in spans if span[0] < span[1]]
    if spans:
        first_of_span, end_of_span = np.array(spans).T
        first = np.searchsorted(end, first_of_span, side="right").tolist()
        last = (np.searchsorted(begin, end_of_span, side="left") - 1).tolist()
        yield from zip(first, last, spans, strict=True)


def num_ids(tokenizer: Any) -> int:
    """The largest id of a tokenizer plus 1; 0 for None. Unlike `len`, it counts unused ids."""
    return 0 if tokenizer is None else 1 + max(tokenizer.get_vocab().values(), default=-1)


class Vocabulary:
    """The `size` ids that a head scores, and what their tokenizer says about them."""

    def __init__(self, size: int, tokenizer: Any = None) -> None:
        if tokenizer is not None and not hasattr(tokenizer, "all_special_ids"):
            raise TypeError(
                f"tokenizer must be a tokenizer of transformers, got {type(tokenizer).__name__}; "
                "load it with AutoTokenizer.from_pretrained(...)"
            )
        known = set() if tokenizer is None else set(tokenizer.get_vocab().values())
        # A special token that only the tokenizer has, such as an added padding token, is harmless.
        beyond = {i for i in known if i >= size}
        if beyond and beyond - set(tokenizer.all_special_ids):
            raise ValueError(
                f"tokenizer has {len(known)} tokens, up to id {max(known)}, but the prior's "
                f"vocabulary has only {size}; pass the tokenizer that the prior was trained with"
            )
        self.size = size
        self.tokenizer = tokenizer
        self.protection = Protection.of(tokenizer)
        self._no_text = torch.zeros(size, dtype=torch.bool)
        if tokenizer is not None:
            # Ids that no token has: padding of the vocabulary, and holes in the tokenizer.
            self._no_text[:] = True
            self._no_text[sorted(known - beyond)] = False
        self._on_device: dict[tuple[frozenset[int], torch.device], Tensor] = {}

    @functools.cached_property
    def added_bos(self) -> int | None:
        """The BOS that the tokenizer adds to each text; None: it adds none."""
        bos = getattr(self.tokenizer, "bos_token_id", None)
        begins = bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]
        return bos if begins else None

    def forbidden(self, special_ids: frozenset[int], device: torch.device) -> Tensor:
        """(m,) int64: the ids that must not be drawn, `special_ids` and unused ones; cached."""
        key = (special_ids, device)
        if key not in self._on_device:
            forbidden = self._no_text.clone()
            forbidden[[i for i in special_ids if i < self.size]] = True
            self._on_device[key] = forbidden.nonzero().squeeze(-1).to(device)
        return self._on_device[key]


def id_mask(tokens: Tensor, ids: Iterable[int]) -> Tensor:
    """(M,) int64 -> (M,) bool: which tokens are among some ids."""
    return torch.from_numpy(np.isin(tokens.numpy(), list(ids)))


def rule_mask(rules: str, tokens: Tensor, documents: Documents, tokenizer: Any) -> Tensor:
    """(M,) bool: which tokens the named rules of `EditPolicy.protect` protect.

    Raises:
        ValueError: `tokenizer` is None.
    """
    if tokenizer is None:
        raise ValueError(
            f"protect={rules!r} reads the text, and no tokenizer is known; give one: "
            "Prior(model, tokenizer), or ToEditCollator(..., tokenizer=tokenizer)"
        )
    spelling, border = Spelling.of(tokenizer), BORDER.encode()
    spelled = spelling.of_tokens(tokens.tolist(), tokenizer)
    pairs = zip(tokens.tolist(), spelled, strict=True)
    spelled = [border if token in spelling.special else one for token, one in pairs]
    parsed = parse_rules(rules)
    mask = np.zeros(len(spelled), dtype=bool)
    for part in documents.slices:  # rules must not see other documents
        text, begin, end = text_of(spelled[part])
        spans = (span for rule in parsed for span in find_spans(rule, text))
        for first, last, _ in _tokens_of(spans, begin, end):
            mask[part][first : last + 1] = True
    return torch.from_numpy(mask)
