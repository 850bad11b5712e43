"""A passage with its edits marked, in colour or in plain text."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from ..editing import EditResult, edit_tokens
from ..policy import EditPolicy
from ..prior import Prior
from .measure import Batch

_SECONDS = 10.0
_RED, _GREEN, _DIM, _UNDERLINE, _END = "\33[9;31m", "\33[1;32m", "\33[2m", "\33[4m", "\33[0m"


@dataclass(frozen=True)
class Passage:
    """Some tokens of one document, before and after the edit; all lists are of one length."""

    before: list[int]
    after: list[int]
    selected: list[bool]
    probability: list[float]  # that the prior gave the token before; NaN where there is none

    @property
    def num_changed(self) -> int:
        """Tokens that the edit replaced."""
        return sum(old != new for old, new in zip(self.before, self.after, strict=True))


def find_passage(
    prior: Prior, batches: list[Batch], policy: EditPolicy, num_tokens: int = 110
) -> Passage:
    """The window of `num_tokens` tokens with the most changed, and then the most selected.

    With a slow prior, the search ends after some seconds.
    """
    started = time.perf_counter()
    best: tuple[int, int] = (-1, -1)
    passage = Passage([], [], [], [])
    for batch in batches:
        result = edit_tokens(prior, **batch, policy=policy, return_logprob=True)
        for row in range(len(result.input_ids)):
            real = batch["attention_mask"][row].bool()
            for start in range(0, max(1, int(real.sum()) - num_tokens + 1), 8):
                window = real.nonzero().squeeze(-1)[start : start + num_tokens]
                changed = int(result.changed[row, window].sum())
                score = (changed, int(result.selected[row, window].sum()))
                if score > best:
                    best, passage = score, _cut(batch, result, row, window)
        if time.perf_counter() - started > _SECONDS:
            break
    return _from_word_start(passage, prior.tokenizer)


def _cut(batch: Batch, result: EditResult, row: int, window: torch.Tensor) -> Passage:
    assert result.logprob is not None
    return Passage(
        before=batch["input_ids"][row, window].tolist(),
        after=result.input_ids[row, window].tolist(),
        selected=result.selected[row, window].tolist(),
        probability=result.logprob[row, window].exp().tolist(),
    )


def _from_word_start(passage: Passage, tokenizer: Any) -> Passage:
    """Leave out the end of a word at the start of the passage."""
    if tokenizer is None:
        return passage
    pieces = _pieces(tokenizer, passage.before)
    for start, piece in enumerate(pieces[:8]):
        if piece[:1].isspace():
            return Passage(*(values[start:] for values in vars(passage).values()))
        if passage.selected[start]:
            break
    return passage


def mark_edits(passage: Passage, tokenizer: Any, *, color: bool) -> str:
    """The passage as text: `[old -> new, P=0.993]`, and `{kept}` where a resample was the same."""
    pieces: list[str] = []
    kept = ""
    texts = _pieces(tokenizer, passage.before)
    for i, (old, new) in enumerate(zip(passage.before, passage.after, strict=True)):
        if old == new and passage.selected[i]:
            kept += texts[i]  # neighbours share their marks
            continue
        pieces.append(_mark_kept(kept, color))
        kept = ""
        if old == new:
            pieces.append(texts[i])
        else:
            drawn = _pieces(tokenizer, [*passage.before[:i], new])[-1]
            pieces.append(_mark_changed(texts[i], drawn, passage.probability[i], color))
    return "".join([*pieces, _mark_kept(kept, color)])


def legend(*, color: bool) -> str:
    """What the marks of `mark_edits` mean."""
    example = _mark_changed("old", "new", 0.993, color)
    kept = _mark_kept("kept", color)
    return (
        f"{example}  changed: P is what the prior gave the old token\n"
        f"{kept}  selected: resampled too, and the same token came out"
    )


def _mark_changed(old: str, new: str, probability: float, color: bool) -> str:
    chance = f"P={probability:.4f}" if probability >= 0.9995 else f"P={probability:.3f}"
    old, new = _visible(old), _visible(new)
    if color:
        return f"{_RED}{old}{_END}{_GREEN}{new}{_END}{_DIM}({chance}){_END}"
    return f"[{old} -> {new}, {chance}]"


def _mark_kept(text: str, color: bool) -> str:
    if not text:
        return ""
    # Per line: an underline would run on over the margin of the next one.
    lines = [
        line and (f"{_UNDERLINE}{line}{_END}" if color else f"{{{line}}}")
        for line in text.split("\n")
    ]
    return "\n".join(lines)


def _visible(text: str) -> str:
    text = text.replace("\n", "\\n").replace("\t", "\\t")
    return text if text.strip() else f"'{text}'"


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each token adds to the text before it.

    Decoded by itself, a token may lose its space. One that ends within a letter adds nothing; the
    token that completes the letter adds it whole.
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
