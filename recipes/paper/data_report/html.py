"""report.html: tables and figures, with what each shows; it loads nothing but its own folder."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

_FIGURES = {
    "histogram": (
        "Probabilities of tokens (Figure 6)",
        "Text that a language model knows has a U: many tokens near 0, many near 1, few between.",
    ),
    "perplexity": (
        "Perplexities of documents (Figures 3 and 9)",
        "Where one set is narrower than the first, training on it alone misses the rest.",
    ),
    "ngrams": (
        "N-grams in 10,000 hash buckets (Figure 5)",
        "The steeper a line falls, the more a set repeats itself; grey: all buckets alike.",
    ),
    "bigrams": (
        "The 64 most frequent pairs of tokens (Figures 10 and 11)",
        "Above the line are the first 40; a blank is written as \N{OPEN BOX}.",
    ),
    "map": (
        "Documents on a plane (Figure 4)",
        "Mean hidden states of the prior; sets that lie apart differ in what they are about.",
    ),
    "what_if": (
        "What the settings of Tables 5 to 7 would change",
        "Expected from the prior's own probabilities, without training; bars: 95 % intervals.",
    ),
}
_TABLES = {
    "sets": "The sets",
    "deciles": "Tokens by their probability (Table 8)",
    "what_if": "What the settings of Tables 5 to 7 would change",
    "baselines": "The filters of section 2.2 (Table 10's question)",
}
_NOTES = {
    "what_if": "KL is that of Eq. 9, KL(edited || original), if the text were drawn from the prior "
    "itself. Selected shares are counts; the others are estimated from positions of all strata of "
    "probability.",
    "baselines": "Each filter keeps half of the sampled documents.",
}
_STYLE = """
:root { --paper: #fff; --ink: #1b1b1f; --faint: #5b5b66; --line: #d8d8e0; --warn: #fdf0d5; }
@media (prefers-color-scheme: dark) { :root { --paper: #141418; --ink: #e8e8ee; --faint: #a5a5b2;
  --line: #3a3a45; --warn: #433008; } }
body { max-width: 72rem; margin: 0 auto; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h2 { font-size: 1.15rem; margin-top: 2rem; } p.note, caption { color: var(--faint); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
ul.warnings li { background: var(--warn); padding: .3rem .6rem; margin: .3rem 0; }
figure { margin: 1.5rem 0; } figcaption { color: var(--faint); }
"""


def as_page(
    warnings: Sequence[str],
    tables: Mapping[str, list[list[Any]]],
    figures: Sequence[str],
    prior: str,
) -> str:
    """The page; its figures lie in the folder `figures` beside it."""
    said = [f"<li>{html.escape(one)}</li>" for one in warnings]
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark"><title>Data report</title>',
        f"<style>{_STYLE}</style></head><body><main><h1>What the prior sees in the data</h1>",
        f'<p class="note">Prior: {html.escape(prior)}</p>',
        "<h2>Warnings</h2>",
        f'<ul class="warnings">{"".join(said)}</ul>' if said else "<p>None.</p>",
    ]
    for name, title in _TABLES.items():
        if name in tables:
            parts.append(f'<h2 id="{name}">{html.escape(title)}</h2>')
            if name in _NOTES:
                parts.append(f'<p class="note">{html.escape(_NOTES[name])}</p>')
            parts.append(_table(tables[name], title))
    for name in figures:
        title, note = _FIGURES[name]
        parts.append(
            f'<figure><h2>{html.escape(title)}</h2><img src="figures/{name}.svg" '
            f'alt="{html.escape(f"{title}. {note} The numbers are in figures and report.json.")}">'
            f"<figcaption>{html.escape(note)}</figcaption></figure>"
        )
    return "\n".join([*parts, "</main></body></html>\n"])


def _table(rows: list[list[Any]], title: str) -> str:
    head, *body = rows
    cells = "".join(f'<th scope="col">{html.escape(str(cell))}</th>' for cell in head)
    lines = [
        "<tr>"
        + "".join(
            f'<th scope="row">{html.escape(str(cell))}</th>'
            if i == 0
            else f"<td>{html.escape(str(cell))}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in body
    ]
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(title)}"><table>'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
