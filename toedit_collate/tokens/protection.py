"""Which tokens are never edited: special ones, the chat template's own, what rules spare."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..policy import parse_rules
from .documents import Documents
from .rules import find_spans
from .spelling import Spelling, text_of

logger = logging.getLogger("toedit_collate")

# Stand-ins for what people say, to see which tokens of a rendered conversation the template adds.
_CONTENTS = ("Xylophone", "Quizmaster", "Jackdaw", "Vortex", "Zephyr")


def special_token_ids(tokenizer: Any) -> set[int]:
    """Ids of special tokens, and of added tokens that the chat template writes.

    Args:
        tokenizer: of the prior; None: no token is known to be special.
    """
    if tokenizer is None:
        return set()
    ids = set(tokenizer.all_special_ids)
    template = _template_text(tokenizer)
    for token_id, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if token.special or token.content in template:
            ids.add(token_id)
    return ids


def template_sequences(tokenizer: Any) -> list[list[int]]:
    r"""The runs of tokens that the chat template puts around what people say.

    For ChatML, for example: `<|im_start|>user\n` and `<|im_end|>\n<|im_start|>assistant\n`. A
    template that cannot be rendered, or a tokenizer without one, has none.

    Args:
        tokenizer: of the prior, or None.
    """
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        return []
    found: set[tuple[int, ...]] = set()
    roles: tuple[str, ...]
    for opening in (("user", "assistant"), ("system", "user", "assistant")):
        roles = (*opening, "user", "assistant")
        contents = _CONTENTS[: len(roles)]
        messages = [
            {"role": role, "content": content}
            for role, content in zip(roles, contents, strict=True)
        ]
        for prompt in (False, True):
            try:
                text = tokenizer.apply_chat_template(
                    messages[:-1] if prompt else messages,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            except Exception as error:  # templates are programs: they may raise anything
                logger.debug("chat template not rendered with roles %s: %s", roles, error)
                continue
            found.update(_runs_between(tokenizer, text, contents[:-1] if prompt else contents))
    return [list(run) for run in sorted(found)]


def structure_mask(
    tokens: Tensor, document: Tensor, special_ids: Iterable[int], sequences: list[list[int]]
) -> Tensor:
    """Where special tokens and runs of the chat template stand; a run lies in one document.

    Args:
        tokens: (M,) int64, of all documents, one after another.
        document: (M,) int64, the number of each token's document.
        special_ids: ids.
        sequences: runs of ids (`template_sequences`).

    Returns:
        (M,) bool.
    """
    given, number = tokens.numpy(), document.numpy()
    ids = np.fromiter(special_ids, dtype=np.int64)
    if len(given) == 0:
        return torch.zeros(0, dtype=torch.bool)
    is_special = np.zeros(int(given.max()) + 1, dtype=bool)
    is_special[ids[ids < len(is_special)]] = True
    mask = is_special[given]
    for run in sequences:
        begin = np.flatnonzero(given[: max(0, len(given) - len(run) + 1)] == run[0])
        for offset, token_id in enumerate(run[1:], 1):
            begin = begin[given[begin + offset] == token_id]
        begin = begin[number[begin] == number[begin + len(run) - 1]]
        for offset in range(len(run)):
            mask[begin + offset] = True
    return torch.from_numpy(mask)


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
        here = mask[start : start + length]
        for span_begin, span_end in (span for rule in parsed for span in find_spans(rule, text)):
            if span_begin == span_end:
                continue
            first = int(np.searchsorted(end, span_begin, side="right"))
            last = int(np.searchsorted(begin, span_end, side="left"))
            here[first:last] = True
    return torch.from_numpy(mask)


def _template_text(tokenizer: Any) -> str:
    template = getattr(tokenizer, "chat_template", None) or ""
    return " ".join(template.values()) if isinstance(template, dict) else str(template)


def _runs_between(tokenizer: Any, text: str, contents: tuple[str, ...]) -> list[tuple[int, ...]]:
    """The tokens of `text` before, between and behind `contents`."""
    if any(content not in text for content in contents) or not tokenizer.is_fast:
        return []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    runs: list[tuple[int, ...]] = []
    run: list[int] = []
    spans = [(text.index(content), text.index(content) + len(content)) for content in contents]
    special = set(tokenizer.all_special_ids)
    for token_id, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if any(begin < span_end and span_begin < end for span_begin, span_end in spans):
            runs.append(tuple(run))
            run = []
        else:
            run.append(token_id)
    runs.append(tuple(run))
    # A lone ordinary token (a line feed, say) occurs in text too: only runs that a reader would
    # recognise as the template's count.
    return [run for run in runs if len(run) > 1 or (run and run[0] in special)]
