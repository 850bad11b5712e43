"""An inspection in a terminal: tables by kind of token, and documents with their edits marked."""

from __future__ import annotations

import math

from ..tokens.alignment.ways import MEANING
from .alignment_table import TITLE, alignment_rows, percent
from .inspection import Document, Edit, Inspection
from .kinds import KINDS
from .tally import KindTally

# A row may hold what would steer the terminal, or turn the line around: it is shown instead.
_HARMLESS = {n: chr(0x2400 + n) for n in range(32) if chr(n) not in "\n\t"} | dict.fromkeys(
    [*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)],
    "\N{REPLACEMENT CHARACTER}",
)
_RED, _GREEN, _DIM, _BOLD, _LINE, _END = (
    "\33[9;31m", "\33[1;32m", "\33[2m", "\33[1m", "\33[4m", "\33[0m"
)  # fmt: skip
# Signs that text hardly ever has, for outputs without colour.
_OPEN, _ARROW, _CLOSE = (
    "\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}",
    " \N{RIGHTWARDS ARROW} ",
    ("\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}"),
)
_AROUND = 24  # tokens of context on either side of an edit


def show(seen: Inspection, *, color: bool, num_documents: int = 3, num_edits: int = 8) -> str:
    """Tables, some documents, and the recommendation.

    Args:
        seen: what to show.
        color: whether the terminal takes it; otherwise edits stand in white square brackets.
        num_documents: how many of the documents that were kept.
        num_edits: of each document and policy.
    """
    parts = [_heading(seen, color)]
    parts += [_table(name, tally, color) for name, tally in seen.tallies.items()]
    if seen.alignment:
        parts.append(_alignment(seen, color))
    with_edits = [d for d in seen.documents if d.num_edits or d.num_selected]
    parts += [
        _document(seen, document, color, num_edits)
        for document in (with_edits or seen.documents)[:num_documents]
    ]
    parts.append("\n".join(seen.recommend()))
    return "\n\n".join(parts) + "\n"


def _heading(seen: Inspection, color: bool) -> str:
    chances = seen.probabilities
    documents = f"{seen.num_documents:,} document{'s' * (seen.num_documents != 1)}"
    facts = f"{documents}, {seen.num_tokens:,} tokens of {seen.data}; prior: {seen.prior}"
    if not chances.total:
        return facts
    bars = " .:-=+*#%@"
    tall = max(int(chances.bins.max()), 1)
    ruler = "".join(bars[math.ceil(9 * count / tall)] for count in chances.bins)
    return (
        f"{facts}\nof {chances.total:,} tokens with a label: perplexity {chances.perplexity:.1f}; "
        f"probabilities from 0 to 1: |{ruler}|, "
        f"{chances.bins[-1] / chances.total:.1%} from 0.95 on\n"
        f"marks: {_change('old', 'new', 0.993, color)}  "
        + (_kept("selected, the same came out", color) if color else "changed, with P of the old")
    )


def _table(name: str, tally: KindTally, color: bool) -> str:
    """One policy; counts, and shares of the tokens of the kind."""
    title = f"{_BOLD}{name}{_END}" if color else name
    head = ["kind of token", "tokens", "selected", "", "changed", "", "removed", "spared"]
    rows = [head]
    for kind in (*KINDS, None):
        tokens = tally.of(kind, "tokens")
        if not tokens and kind is not None:
            continue
        rows.append(
            [
                kind or "all",
                f"{tokens:,}",
                f"{tally.of(kind, 'selected'):,}", percent(tally.share(kind, "selected")),
                f"{tally.of(kind, 'changed'):,}", percent(tally.share(kind, "changed")),
                f"{tally.of(kind, 'removed'):,}",
                f"{tally.of(kind, 'spared'):,}",
            ]
        )  # fmt: skip
    return "\n".join([title, *_in_columns(rows)])


def _alignment(seen: Inspection, color: bool) -> str:
    """How the tokens of the trainee are scored, and what policies make of each of these ways."""
    said = [f"{way}: {what}" for way, what in MEANING.items()]
    title = f"{_BOLD}{TITLE}{_END}" if color else TITLE
    return "\n".join([title, *_in_columns(alignment_rows(seen)), *said])


def _in_columns(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _document(seen: Inspection, document: Document, color: bool, num_edits: int) -> str:
    title = f"{document.name}: {len(document.ids)} tokens"
    lines = [f"{_BOLD}{title}{_END}" if color else title]
    for name, edit in document.edits.items():
        places = sorted(edit.changed + edit.removed) or np_places(edit)
        counts = (
            f"{int(edit.selected.sum())} selected, {len(edit.changed)} changed"
            + (f", {len(edit.removed)} removed" if edit.removed else "")
        )  # fmt: skip
        lines.append(f"-- {name}: {counts}")
        if places:
            lines.append(_passages(seen, document, edit, places[:num_edits], color))
        lines += [_detail(seen, document, edit, place) for place in edit.changed[:num_edits]]
    return "\n".join(lines)


def np_places(edit: Edit) -> list[int]:
    """Where tokens were selected."""
    return [int(place) for place in edit.selected.nonzero()[0]]


def _passages(
    seen: Inspection, document: Document, edit: Edit, places: list[int], color: bool
) -> str:
    """The text around some edits; what lies between is left out."""
    shown: list[str] = []
    end = 0
    for place in places:
        begin = max(end, place - _AROUND)
        if begin > end:
            shown.append(" ... ")
        stop = min(len(document.ids), place + _AROUND)
        shown += [_token(seen, document, edit, i, color) for i in range(begin, max(begin, stop))]
        end = max(end, stop)
    return "".join(shown) + (" ..." if end < len(document.ids) else "")


def _token(seen: Inspection, document: Document, edit: Edit, i: int, color: bool) -> str:
    old, new = edit.before[i], edit.after[i]
    if old < 0:
        return ""
    text = document.text.pieces[i] if old == document.ids[i] else seen.reader.piece(old)
    text = text.translate(_HARMLESS)
    if new != old:
        drawn = "" if new is None else seen.reader.piece(new).translate(_HARMLESS)
        return _change(text, drawn, float(document.probability[i]), color)
    return _kept(text, color) if edit.selected[i] else text


def _detail(seen: Inspection, document: Document, edit: Edit, place: int) -> str:
    """One edit with the prior's runners-up."""
    piece = seen.reader.piece
    new = edit.after[place]
    assert new is not None
    chance = document.probability[place]
    said = "" if math.isnan(chance) else f", P = {_chance(float(chance))}"
    others = [
        f"{piece(token)!r} {_chance(p)}"
        for token, p in document.candidates.get(place, ())
        if token != edit.before[place]
    ]
    then = f"; runners-up: {', '.join(others)}" if others else ""
    return f"   token {place}: {piece(edit.before[place])!r} -> {piece(new)!r}{said}{then}"


def _chance(p: float) -> str:
    return f"{p:.4f}" if p >= 0.9995 or p < 0.001 else f"{p:.3f}"


def _change(old: str, new: str, chance: float, color: bool) -> str:
    old, new = _visible(old), _visible(new) if new else "nothing"
    said = "" if math.isnan(chance) else f"P={_chance(chance)}"
    if color:
        return f"{_RED}{old}{_END}{_GREEN}{new}{_END}" + (said and f"{_DIM}({said}){_END}")
    return f"{_OPEN}{old}{_ARROW}{new}" + (said and f", {said}") + _CLOSE


def _kept(text: str, color: bool) -> str:
    if not color:
        return text  # too many to be marked by signs
    # Per line: an underline would run on over the margin of the next one.
    return "\n".join(line and f"{_LINE}{line}{_END}" for line in text.split("\n"))


def _visible(text: str) -> str:
    text = text.replace("\n", "\N{RETURN SYMBOL}").replace("\t", "\N{RIGHTWARDS ARROW TO BAR}")
    return text if text.strip() else text.replace(" ", "\N{OPEN BOX}")
