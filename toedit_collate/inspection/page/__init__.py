"""The page of `toedit inspect --html`: one file that needs no network.

`as_page` packs findings as JSON; `page.html`, `style.css` and `script.js` show them. A content
security policy forbids the page to load anything. Probabilities are rounded down to five digits:
compared with a threshold of up to five digits, they give the policy's own decision.
"""

from __future__ import annotations

import html
import json
import math
from importlib.resources import files
from typing import Any

import numpy as np

from ..advice import acted, notes, recommend, recommended_policy
from ..findings import COLUMNS, THRESHOLDS, Document, Edit, Findings
from ..kinds import KINDS, MEANING

# Candidates are most of the page: they are kept for so many tokens, those of the first documents.
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
    chances = seen.probabilities
    advice = recommend(seen)
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
        "kinds": [[kind, MEANING[kind]] for kind in KINDS],
        "columns": COLUMNS,
        "isRun": seen.run is not None,
        "advice": None if advice is None else [advice.title, advice.reason],
        "notes": notes(seen),
        "opensOn": names.index(recommended_policy(seen) or most),
        "policies": [_policy(seen, name) for name in names],
        "documents": _documents(seen),
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


def _documents(seen: Findings) -> list[dict[str, Any]]:
    packed = []
    room = MAX_PLACES
    for document in seen.documents:
        candidates = document.candidates if room > 0 else {}
        room -= len(candidates)
        packed.append(
            {
                "name": document.name,
                "tokens": document.pieces,
                "p": [_chance(p) for p in document.probability.tolist()],
                "kinds": [np.flatnonzero(row).tolist() for row in document.kinds],
                "candidates": {
                    place: [[seen.reader.piece(token), _chance(p)] for token, p in found]
                    for place, found in candidates.items()
                },
                "edits": [_edit(seen, document, edit) for edit in document.edits.values()],
            }
        )
    return packed


def _edit(seen: Findings, document: Document, edit: Edit) -> dict[str, Any]:
    return {
        "selected": np.flatnonzero(edit.selected).tolist(),
        "protected": np.flatnonzero(edit.protected).tolist(),
        "unscored": np.flatnonzero(~edit.scored).tolist(),
        "removed": edit.removed,
        "changed": [
            [place, seen.text_before(document, edit, place), seen.text_after(edit, place)]
            for place in edit.changed
        ],
    }


def _chance(p: float) -> float:
    """P for the page; -1: the prior gives none."""
    return -1 if math.isnan(p) else math.floor(min(p, 1.0) * 100_000) / 100_000
