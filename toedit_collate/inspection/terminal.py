"""An inspection as text for a terminal: tables, documents with marked edits, a recommendation."""

from __future__ import annotations

import math
import textwrap

from .advice import acted, notes, percent, recommend
from .findings import Document, Edit, Findings
from .kinds import KINDS

# A document may contain characters that control the terminal or reverse the line: show stand-ins.
_HARMLESS = {n: chr(0x2400 + n) for n in range(32) if chr(n) not in "\n\t"} | dict.fromkeys(
    [*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)],
    "\N{REPLACEMENT CHARACTER}",
)
_RED, _GREEN, _BOLD, _END = "\33[9;31m", "\33[1;32m", "\33[1m", "\33[0m"
# Around an edit: text hardly ever contains these characters.
_OPEN = "\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}"
_CLOSE = "\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}"
_ARROW = " \N{RIGHTWARDS ARROW} "
_AROUND = 24  # tokens of context before and after an edit
WIDTH = 96  # columns of running text


def as_text(seen: Findings, *, color: bool, num_documents: int = 2, num_edits: int = 5) -> str:
    """Tables, some documents, and the recommendation.

    Args:
        seen: what to show.
        color: use colours.
        num_documents: how many documents to show.
        num_edits: how many edits to show, of each document and policy.
    """
    shown = [d for d in seen.documents if d.num_edits] or seen.documents
    parts = [
        _heading(seen, color),
        policy_table(seen),
        _kind_table(seen),
        "\n".join(wrapped(line) for line in notes(seen)),
        *(
            _document(seen, document, color, num_edits, first=not number)
            for number, document in enumerate(shown[:num_documents])
        ),
    ]
    advice = recommend(seen)
    if advice is not None:
        parts.append(boxed("Recommendation", f"{advice.title}\n{advice.reason}", color=color))
    return "\n\n".join(filter(None, parts)) + "\n"


def wrapped(text: str, indent: str = "") -> str:
    """Running text in lines of at most `WIDTH` columns."""
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def boxed(title: str, text: str, *, color: bool) -> str:
    """Paragraphs with a title and a line on their left."""
    bar = "\N{BOX DRAWINGS HEAVY VERTICAL} "
    lines = [bar + bold(title, color), *(wrapped(one, bar) for one in text.splitlines())]
    return "\n".join(lines)


def bold(text: str, color: bool) -> str:
    """Text in bold where colours are used."""
    return f"{_BOLD}{text}{_END}" if color else text


def in_columns(rows: list[list[str]]) -> str:
    """A table: the first column is aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _heading(seen: Findings, color: bool) -> str:
    chances = seen.probabilities
    documents = f"{seen.num_documents:,} document{'s' * (seen.num_documents != 1)}"
    facts = f"{documents}, {seen.num_tokens:,} tokens of {seen.data}; prior: {seen.prior}."
    if chances.total:
        facts += (
            f" {chances.total:,} tokens have a label. The prior's perplexity on them is "
            f"{chances.perplexity:.1f}; {percent(chances.bins[-1] / chances.total)} have a "
            "probability of 0.95 or more."
        )
    return f"{bold(seen.title, color)}\n{wrapped(facts)}"


def policy_table(seen: Findings) -> str:
    """A row for each policy: how many tokens it selects and changes."""
    # A journal does not store which tokens were selected; `notes` has their number.
    some = ["changed"] if seen.run is not None else ["selected", "changed"]
    tallies = seen.tallies.values()
    some += [c for c in ("removed", "protected") if any(tally.of(None, c) for tally in tallies)]
    rows = [["policy", "tokens", *(cell for column in some for cell in (column, ""))]]
    for name, tally in seen.tallies.items():
        rows.append([name, f"{tally.of(None, 'tokens'):,}"])
        for column in some:
            rows[-1] += [f"{tally.of(None, column):,}", percent(tally.share(None, column))]
    legend = "selected: the policy resamples the token. changed: the new token is another one."
    return in_columns(rows) + ("\n" + legend if seen.run is None else "")


def _kind_table(seen: Findings) -> str:
    """A row for each kind of token: the share that each policy changes or removes."""
    tallies = list(seen.tallies.values())
    rows = [["changed or removed, by kind", "tokens", *seen.tallies]]
    for kind in KINDS:
        if tokens := tallies[0].of(kind, "tokens"):
            shares = (acted(tally, kind) for tally in tallies)
            rows.append([kind, f"{tokens:,}", *map(percent, shares)])
    return in_columns(rows)


def _document(
    seen: Findings, document: Document, color: bool, num_edits: int, *, first: bool
) -> str:
    lines = [bold(f"{document.name}, {len(document.ids)} tokens", color)]
    if first and not all(map(seen.targets_labels, seen.policies)):
        lines.append(f"Marks: {_change('old', 'new', 0.993, color)}; P of the old token.")
    for name, edit in document.edits.items():
        counts = [f"{int(edit.selected.sum())} selected"] if seen.run is None else []
        counts.append(f"{len(edit.changed)} changed")
        counts += [f"{len(edit.removed)} removed"] if edit.removed else []
        lines.append(f"-- {name}: {', '.join(counts)}")
        places = sorted(edit.changed + edit.removed)[:num_edits]
        if seen.targets_labels(name):
            lines += label_lines(seen, document, edit, places, seen.num_draws(name))
        elif places:
            lines.append(passages(seen, document, edit, places, color))
            lines += filter(None, (_detail(seen, document, edit, i) for i in places))
    return "\n".join(lines)


def passages(seen: Findings, document: Document, edit: Edit, places: list[int], color: bool) -> str:
    """The text around some edits, with the edits marked; the text between is left out."""
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


def label_lines(
    seen: Findings, document: Document, edit: Edit, places: list[int], num_draws: int
) -> list[str]:
    """A table of changed labels: the text before each, the text's own token, and the new label."""
    label = "the label is" if num_draws == 1 else f"first of {num_draws} draws"
    rows = [["   after the text", "the text has", label, "P of each"]]
    for i in places:
        before = "".join(document.pieces[max(0, i - 12) : i]).translate(_HARMLESS)
        before = " ".join(before.split())[-44:]
        tokens = (seen.text_before(document, edit, i), seen.text_after(edit, i))
        new = dict(document.candidates.get(i, ())).get(edit.after[i])
        chances = (_chance(document.probability[i]), "less" if new is None else _chance(new))
        rows.append(
            [f"   ...{before}", *(repr(t.translate(_HARMLESS)) for t in tokens), ", ".join(chances)]
        )
    return in_columns(rows).splitlines() if len(rows) > 1 else []


def _token(seen: Findings, document: Document, edit: Edit, i: int, color: bool) -> str:
    text = seen.text_before(document, edit, i).translate(_HARMLESS)
    if edit.before[i] >= 0 and edit.after[i] != edit.before[i]:
        drawn = seen.text_after(edit, i).translate(_HARMLESS)
        return _change(text, drawn, document.probability[i], color)
    return text


def _detail(seen: Findings, document: Document, edit: Edit, i: int) -> str:
    """Other tokens that the prior finds probable at an edit; "" if they are not known."""
    others = [
        f"{seen.reader.piece(token)!r} {_chance(p)}"
        for token, p in document.candidates.get(i, ())
        if token != edit.before[i]
    ]
    old = seen.text_before(document, edit, i)
    return f"   token {i}, {old!r}; most probable others: {', '.join(others)}" if others else ""


def _chance(p: float) -> str:
    return f"{p:.4f}" if p >= 0.9995 or p < 0.001 else f"{p:.3f}"


def _change(old: str, new: str, chance: float, color: bool) -> str:
    old, new = _visible(old), _visible(new) or "nothing"
    if color:
        old, new = f"{_RED}{old}{_END}", f"{_GREEN}{new}{_END}"
    probability = "" if math.isnan(chance) else f", P={_chance(chance)}"
    return f"{_OPEN}{old}{_ARROW}{new}{probability}{_CLOSE}"


def _visible(text: str) -> str:
    text = text.replace("\n", "\N{RETURN SYMBOL}").replace("\t", "\N{RIGHTWARDS ARROW TO BAR}")
    return text if text.strip() else text.replace(" ", "\N{OPEN BOX}")
