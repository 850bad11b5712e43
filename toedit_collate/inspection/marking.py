"""Text with its edits marked, in colour or plain."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

_RED, _GREEN, _DIM, _UNDERLINE, _END = "\33[9;31m", "\33[1;32m", "\33[2m", "\33[4m", "\33[0m"


@dataclass(frozen=True)
class Passage:
    """Some tokens of one document, before and after the edit; all lists are of one length."""

    before: list[int]
    after: list[int | None]  # None: removed
    selected: list[bool]
    # That the prior gave the token before, NaN where there is none; None: not known of any.
    probability: list[float] | None = None

    @property
    def num_changed(self) -> int:
        """Tokens that the edit replaced."""
        pairs = zip(self.before, self.after, strict=True)
        return sum(new is not None and old != new for old, new in pairs)

    @property
    def num_removed(self) -> int:
        """Tokens that `drop_below` took out."""
        return sum(new is None for new in self.after)


def mark_edits(passage: Passage, tokenizer: Any, *, color: bool) -> str:
    """The passage as text: `[old -> new, P=0.993]`, and `{kept}` where a resample was the same."""
    pieces: list[str] = []
    kept = ""
    texts = token_pieces(tokenizer, passage.before)
    for i, (old, new) in enumerate(zip(passage.before, passage.after, strict=True)):
        if old == new and passage.selected[i]:
            kept += texts[i]  # neighbours share their marks
            continue
        pieces.append(_mark_kept(kept, color))
        kept = ""
        if old == new:
            pieces.append(texts[i])
        else:
            drawn = "" if new is None else token_pieces(tokenizer, [*passage.before[:i], new])[-1]
            chance = None if passage.probability is None else passage.probability[i]
            pieces.append(_mark_changed(texts[i], drawn, chance, color))
    return "".join([*pieces, _mark_kept(kept, color)])


def mark_markup(passage: Passage, tokenizer: Any) -> str:
    """The passage as HTML for Markdown; text can't hold the marks: its own `<` is escaped.

    A changed token is `<del>old</del><ins title="P=0.993">new</ins>`, one that was selected and
    kept `<u>kept</u>`.
    """
    pieces = []
    texts = token_pieces(tokenizer, passage.before)
    for i, (old, new) in enumerate(zip(passage.before, passage.after, strict=True)):
        text = escape(texts[i], quote=False)
        if old == new:
            pieces.append(f"<u>{text}</u>" if passage.selected[i] and text else text)
            continue
        drawn = ""
        if new is not None:
            drawn = token_pieces(tokenizer, [*passage.before[:i], new])[-1]
        pieces.append(f"<del>{text}</del>")
        pieces.append(f"<ins{_title(passage, i)}>{escape(drawn, quote=False)}</ins>")
    return "".join(pieces).replace("</u><u>", "")


def _title(passage: Passage, i: int) -> str:
    chance = None if passage.probability is None else passage.probability[i]
    return "" if chance is None or chance != chance else f' title="{_chance(chance)}"'


def _chance(probability: float) -> str:
    digits = 4 if probability >= 0.9995 or probability < 0.001 else 3
    return f"P={probability:.{digits}f}"


def legend(*, color: bool, probability: float | None = 0.993) -> str:
    """What the marks of `mark_edits` mean; `probability` None: where they have none."""
    example = _mark_changed("old", "new", probability, color)
    said = "" if probability is None else ": P is what the prior gave the old token"
    kept = _mark_kept("kept", color)
    return f"{example}  changed{said}\n{kept}  selected: resampled too, and the same token came out"


def _mark_changed(old: str, new: str, probability: float | None, color: bool) -> str:
    old, new, chance = _visible(old), _visible(new), ""
    if probability is not None:
        chance = _chance(probability)
    if color:
        return f"{_RED}{old}{_END}{_GREEN}{new}{_END}" + (chance and f"{_DIM}({chance}){_END}")
    return f"[{old} -> {new}, {chance}]" if chance else f"[{old} -> {new}]"


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
    if not text:
        return "nothing"
    text = text.replace("\n", "\\n").replace("\t", "\\t")
    return text if text.strip() else f"'{text}'"


def token_pieces(tokenizer: Any, ids: list[int]) -> list[str]:
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
