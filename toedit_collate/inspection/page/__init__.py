"""The page of `toedit inspect --html`: one file that needs no network.

`as_page` packs findings as JSON; `page.html`, `style.css` and `script.js` show them. A content
security policy forbids the page to load anything. To keep the JSON small, texts of tokens are
indices into one list, and places are distances from the place before. Probabilities are whole
hundred-thousandths, rounded down: compared with a threshold of up to five digits, they give the
policy's own decision.
"""

from __future__ import annotations

import html
import json
import math
from importlib.resources import files
from itertools import pairwise
from typing import Any

from ..advice import acted, notes, recommend, recommended_policy
from ..findings import COLUMNS, THRESHOLDS, Document, Edit, Findings
from ..kinds import KINDS, MEANING

SCALE = 100_000
NUM_CANDIDATES = 4
# Tokens whose candidates go into the page, about 50 bytes each; the most probable tokens first.
MAX_PLACES = 40_000


def as_page(seen: Findings) -> str:
    """Findings as a page of HTML that contains everything it needs."""
    # "<" would end the script element where a document contains "</script>".
    data = json.dumps(_pack(seen), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    data = data.replace("<", "\\u003c")
    page = _part("page.html")
    for name, value in (
        ("TITLE", html.escape(f"toedit inspect: {seen.data}")),
        ("HEADING", html.escape(seen.title)),
        ("STYLE", _part("style.css")),
        ("SCRIPT", _part("script.js")),
        ("DATA", data),  # last: documents may contain any text
    ):
        page = page.replace(f"<!--{name}-->", value, 1)
    return page


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _pack(seen: Findings) -> dict[str, Any]:
    texts = _Texts(seen)
    chances = seen.probabilities
    advice = recommend(seen)
    keep = _places_to_keep(seen.documents)
    names = list(seen.policies)
    most = max(names, key=lambda name: acted(seen.tallies[name]))
    return {
        "data": seen.data,
        "prior": seen.prior,
        "numDocuments": seen.num_documents,
        "numTokens": seen.num_tokens,
        "perplexity": round(chances.perplexity, 2) if chances.total else None,
        "labelled": chances.total,
        "bins": chances.bins.tolist(),
        "grid": [
            [t, round(int(count) / max(chances.total, 1), 6)]
            for t, count in zip(THRESHOLDS, chances.at_least, strict=True)
        ],
        "scale": SCALE,
        "kinds": [[kind, MEANING[kind]] for kind in KINDS],
        "columns": COLUMNS,
        "isRun": seen.run is not None,
        "advice": None if advice is None else [advice.title, advice.reason],
        "notes": notes(seen),
        "opensOn": names.index(recommended_policy(seen) or most),
        "policies": [_policy(seen, name) for name in seen.policies],
        "documents": [
            _document(document, texts, keep[number])
            for number, document in enumerate(seen.documents)
        ],
        "texts": list(texts.numbers),
    }


def _policy(seen: Findings, name: str) -> dict[str, Any]:
    policy = seen.policies[name]
    return {
        "name": name,
        "labels": seen.targets_labels(name),
        "draws": seen.num_draws(name),
        "region": "" if policy is None else policy.region,
        "threshold": None if policy is None else policy.threshold,
        "table": seen.tallies[name].counts.tolist(),
    }


class _Texts:
    """Numbers the texts of tokens, each text once."""

    def __init__(self, seen: Findings) -> None:
        self.numbers: dict[str, int] = {}
        self._piece = seen.reader.piece

    def of(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))

    def of_token(self, token: int) -> int:
        return self.of(self._piece(token))


def _document(document: Document, texts: _Texts, keep: set[int]) -> dict[str, Any]:
    return {
        "name": document.name,
        "tokens": [texts.of(piece) for piece in document.text.pieces],
        "p": [_chance(float(p)) for p in document.probability],
        "kinds": document.text.kinds.tolist(),
        # For each place: its number, then text and P of each candidate.
        "candidates": [
            [place, *(x for token, p in found[:NUM_CANDIDATES] for x in (texts.of_token(token),
                                                                        _chance(p)))]
            for place, found in sorted(document.candidates.items())
            if place in keep
        ],
        "edits": [_edit(document, edit, texts) for edit in document.edits.values()],
    }  # fmt: skip


def _edit(document: Document, edit: Edit, texts: _Texts) -> dict[str, Any]:
    changed = []
    for place in edit.changed:
        new = edit.after[place]
        assert new is not None
        one = [place, texts.of_token(new)]
        if edit.before[place] != document.ids[place]:  # in a later generation
            one.append(texts.of_token(edit.before[place]))
        changed.append(one)
    return {
        "selected": _gaps(edit.selected.nonzero()[0].tolist()),
        "protected": _gaps(edit.protected.nonzero()[0].tolist()),
        "unscored": _gaps((~edit.scored).nonzero()[0].tolist()),
        "removed": _gaps(edit.removed),
        "changed": changed,
    }


def _places_to_keep(documents: list[Document]) -> list[set[int]]:
    """For each document, the places whose candidates go into the page: edited ones first."""
    places = []
    for number, document in enumerate(documents):
        edits = document.edits.values()
        for place in document.candidates:
            is_edited = any(edit.before[place] != edit.after[place] for edit in edits)
            places.append((not is_edited, -float(document.probability[place]), number, place))
    keep: list[set[int]] = [set() for _ in documents]
    for _, _, number, place in sorted(places)[:MAX_PLACES]:
        keep[number].add(place)
    return keep


def _chance(p: float) -> int:
    return -1 if math.isnan(p) else math.floor(min(p, 1.0) * SCALE)


def _gaps(places: list[int]) -> list[int]:
    return [place - before for before, place in pairwise([0, *places])]
