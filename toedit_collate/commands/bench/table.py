"""The sections of the report: the same figures as a table for people and as data for programs."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import Any

_WIDTH = 100


@dataclass(frozen=True)
class Column:
    """A column: its header, and how a row's figures are written in it, as `str.format` has it."""

    header: str
    template: str


@dataclass(frozen=True)
class Row:
    """A row: what was measured, by name; `text` stands in place of figures that can't be had."""

    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    text: str = ""


@dataclass
class Section:
    """A part of the report.

    Attributes:
        name: of the part, as `--parts` has it.
        title: one line.
        columns: of figures, behind the rows' names.
        rows: the first column of the table is their names.
        notes: printed below.
        figures: those that stand in notes only, for JSON.
    """

    name: str
    title: str
    columns: list[Column]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """All figures, as JSON has them."""
        rows = [
            {
                "name": row.name,
                **row.figures,
                **({"text": row.text} if row.text else {}),
            }
            for row in self.rows
        ]
        return {"title": self.title, "rows": rows, "notes": self.notes, **self.figures}


def format_section(section: Section) -> str:
    """A section as text: title, table, notes."""
    lines = ["", section.title, "-" * len(section.title)]
    if section.rows:
        header = ["", *(c.header for c in section.columns)]
        cells = [header, *(_cells(row, section.columns) for row in section.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
        for row, line in zip([None, *section.rows], cells, strict=True):
            if row is not None and row.text and not row.figures:
                line = [row.name, row.text]  # may run over the columns
            padded = [line[0].ljust(widths[0])]
            padded += [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=False)]
            lines.append("  ".join(padded).rstrip())
    for note in section.notes:
        lines += textwrap.wrap(note, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def _cells(row: Row, columns: list[Column]) -> list[str]:
    cells = [row.name]
    for column in columns:
        try:
            cells.append(column.template.format(**row.figures))
        except (KeyError, TypeError, ValueError):  # no such figure in this row
            cells.append("")
    return cells


def format_head(facts: dict[str, str]) -> str:
    """The lines on top: what was measured, and on what."""
    width = max(map(len, facts))
    return "\n".join(f"{name:{width}}  {value}" for name, value in facts.items())
