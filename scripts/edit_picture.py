"""Draw real text with its edits marked: the picture in README.md.

python scripts/edit_picture.py --prior FOLDER --data FILE --output docs/images/edits.svg
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch

from toedit_collate import Prior, inspect_edits
from toedit_collate.data import open_data
from toedit_collate.inspection.inspecting import Inspection

LABELS = "region=all sampler=full target=labels"
WIDTH, SIZE, LINE, MARGIN = 860, 16, 44, 24  # the size is also in the style below
LETTER = SIZE * 0.602  # of the monospaced fonts below
# The colours have enough contrast on both backgrounds, and shapes repeat what colours say.
STYLE = """
text { font: 16px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #24292f; }
.new { font-weight: 700; fill: #0550ae; } .old { fill: #a40e26; text-decoration: line-through; }
.note { font-size: 13px; fill: #57606a; } .kept { fill: #ddf4ff; } .back { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .new { fill: #79c0ff; } .old { fill: #ffa198; }
  .note { fill: #9da7b3; } .kept { fill: #12385c; } .back { fill: #0d1117; }
}
"""


@dataclass(frozen=True)
class Word:
    """A token as text, the token that replaces it (if any), and whether it was resampled."""

    text: str
    new: str | None
    is_selected: bool


def words_of(seen: Inspection, number: int, policy: str) -> list[Word]:
    """The tokens of a document from the first one that the policy applies to, to the last one."""
    document = seen.documents[number]
    edit = document.edits[policy]
    texts = document.pieces
    changed = set(edit.changed)
    words = []
    scored = edit.scored.nonzero()[0]
    for place in range(int(scored[0]), int(scored[-1]) + 1):
        piece = seen.text_after(edit, place) if place in changed else None
        words.append(Word(texts[place], piece, bool(edit.selected[place])))
    return words


def draw_text(words: list[Word], y: float, num_lines: int) -> tuple[list[str], float]:
    """SVG shapes of the first lines, from height `y`, and the height below them."""
    shapes: list[str] = []
    x, end = float(MARGIN), y + (num_lines - 1) * LINE
    for word in words:
        text = word.text.replace("\n", "⏎ ")
        new = None if word.new is None else word.new.replace("\n", "⏎")
        wide = len(text) * LETTER
        if new is not None:
            wide = (max(len(text), len(new)) + 0.5) * LETTER
        if x + wide > WIDTH - MARGIN:
            x, y = float(MARGIN), y + LINE
        if y > end:
            return shapes, y
        if word.is_selected and new is None and text.strip():
            shapes.append(
                f'<rect class="kept" x="{x:.1f}" y="{y - SIZE:.1f}" rx="3" '
                f'width="{len(text) * LETTER:.1f}" height="{SIZE + 6}"/>'
            )
        rows = [(text, y, "" if new is None else "old"), (new or "", y - SIZE - 2, "new")]
        for piece, height, name in rows:
            start = x + (len(piece) - len(piece.lstrip())) * LETTER
            if piece.strip():
                shapes.append(
                    f'<text x="{start:.1f}" y="{height:.1f}" class="{name}" '
                    f'textLength="{len(piece.strip()) * LETTER:.1f}">'
                    f"{escape(piece.strip())}</text>"
                )
        x += wide
    return shapes, y + LINE


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw real text with its edits marked, as SVG.")
    parser.add_argument("--prior", required=True, help="folder or hub id of a model")
    parser.add_argument("--prior-name", help="as the picture names it; default: the folder's name")
    parser.add_argument("--data", required=True, help="a file with texts or chats")
    parser.add_argument("--policy", nargs="+", default=["reference_code top_k=64", LABELS])
    parser.add_argument("--document", type=int, default=0, help="the one to draw; default: 0")
    parser.add_argument("--lines", type=int, default=4, help="lines for each policy; default: 4")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)

    name = args.prior_name or Path(args.prior).name
    rows = [row for batch in open_data(args.data).batches() for row in batch.rows]
    seen = inspect_edits(
        Prior.from_pretrained(args.prior, dtype="float32"),
        [rows[args.document]],
        args.policy,
        max_length=512,
    )
    shapes, y = [], float(MARGIN)
    for policy in seen.policies:
        words = words_of(seen, 0, policy)
        num_changed = sum(word.new is not None for word in words)
        what = "labels" if seen.targets_labels(policy) else "tokens"
        heading = f"{policy}: {num_changed} of {len(words)} {what} changed"
        if what == "labels":
            heading += "; the model still reads the text"
        shapes.append(f'<text class="note" x="{MARGIN}" y="{y + 8:.0f}">{escape(heading)}</text>')
        drawn, y = draw_text(words, y + LINE + 8, args.lines)
        shapes += drawn
        print(heading)
    legend = f"bold: drawn by the prior ({name}); shaded: drawn, and the same token came out"
    shapes.append(f'<text class="note" x="{MARGIN}" y="{y - 8:.0f}">{escape(legend)}</text>')
    title = f"A text, and what {name} draws in place of its tokens"
    args.output.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 8:.0f}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title><style>{STYLE}</style>'
        f'<rect class="back" width="100%" height="100%" rx="8"/>{"".join(shapes)}</svg>\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
