"""report.html: tables and figures, with what each shows; it loads nothing but its own folder."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

_FIGURES = {
    "deciles": (
        "Tokens by their probability (Table 8)",
        "A bar is a set, a colour an interval of P. The last bar is the paper's.",
    ),
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
        "Expected from the prior's own probabilities, without training; bars: 95 % intervals. KL "
        "is that of Eq. 9, KL(edited || original), if the text were drawn from the prior itself.",
    ),
}
_TABLES = {
    "sets": ("The sets", "All are compared with the first. Entropy is that of hash buckets."),
    "what_if": (
        "What the settings of Tables 5 to 7 would change, in numbers",
        "The share of tokens that would become another, estimated from positions of all strata of "
        "probability. figures/what_if.csv has selected shares, KL and standard errors, too.",
    ),
    "baselines": (
        "The filters of section 2.2 (the question of Table 13 and Figure 4B)",
        "Each filter keeps half of the sampled documents.",
    ),
}
_STYLE = """
:root { --paper: #fff; --ink: #1b1b1f; --faint: #5b5b66; --line: #d8d8e0; --warn: #fdf0d5; }
@media (prefers-color-scheme: dark) { :root { --paper: #141418; --ink: #e8e8ee; --faint: #a5a5b2;
  --line: #3a3a45; --warn: #433008; } a { color: #8ab4f8; } }
body { max-width: 72rem; margin: 0 auto; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h2 { font-size: 1.15rem; margin-top: 2rem; } p.note, figcaption { color: var(--faint); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; }
img { max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
ul.warnings li { background: var(--warn); padding: .3rem .6rem; margin: .3rem 0; }
figure { margin: 1.5rem 0; }
"""


def as_page(
    warnings: Sequence[str],
    tables: Mapping[str, list[list[Any]]],
    figures: Mapping[str, str | None],
    prior: str,
) -> str:
    """The page; its figures lie in the folder `figures` next to it.

    Args:
        warnings: sentences.
        tables: by name; the first row is the head, and the first column names the row.
        figures: by name, and the table with the numbers of each: a file in `figures`.
        prior: what scored, in words.
    """
    items = "".join(f"<li>{html.escape(one)}</li>" for one in warnings)
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark"><title>Data report</title>',
        f"<style>{_STYLE}</style></head><body><main><h1>What the prior sees in the data</h1>",
        f'<p class="note">Prior: {html.escape(prior)}</p>',
        "<h2>Warnings</h2>",
        f'<ul class="warnings">{items}</ul>' if warnings else "<p>None.</p>",
    ]
    parts += _section(tables, "sets")
    for name, (title, note) in _FIGURES.items():
        if name in figures:
            file, title, note = figures[name], html.escape(title), html.escape(note)
            numbers = f' <a href="figures/{file}">Numbers</a>' if file else ""
            parts.append(
                f'<figure id="{name}"><h2>{title}</h2>'
                f'<img src="figures/{name}.svg" alt="{title}. {note}">'
                f"<figcaption>{note}{numbers}</figcaption></figure>"
            )
    parts += _section(tables, "what_if") + _section(tables, "baselines")
    return "\n".join([*parts, "</main></body></html>\n"])


def _section(tables: Mapping[str, list[list[Any]]], name: str) -> list[str]:
    if name not in tables:
        return []
    title, note = (html.escape(text) for text in _TABLES[name])
    return [f'<h2>{title}</h2><p class="note">{note}</p>', _table(tables[name], title)]


def _table(rows: list[list[Any]], title: str) -> str:
    def line(cells: list[Any], kind: str) -> str:
        first, *rest = (html.escape(str(cell)) for cell in cells)
        scope = "col" if kind == "th" else "row"
        others = "".join(
            f'<th scope="col">{x}</th>' if kind == "th" else f"<td>{x}</td>" for x in rest
        )
        return f'<tr><th scope="{scope}">{first}</th>{others}</tr>'

    head, *body = rows
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table>'
        f"<thead>{line(head, 'th')}</thead><tbody>{''.join(line(row, 'td') for row in body)}"
        "</tbody></table></div>"
    )
