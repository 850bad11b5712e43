"""An inspection as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from .advice import recommend
from .findings import COLUMNS, HISTOGRAM_BINS, THRESHOLDS, Document, Findings, KindTally
from .kinds import KINDS


def as_record(seen: Findings) -> dict[str, Any]:
    """All figures, and each edit of the documents that are shown."""
    chances = seen.probabilities
    advice = recommend(seen)
    record: dict[str, Any] = {
        "prior": seen.prior,
        "data": seen.data,
        "documents": seen.num_documents,
        "tokens": seen.num_tokens,
        "probabilities": {
            "tokens": chances.total,
            "perplexity": _number(chances.perplexity),
            "histogram": {"bins": HISTOGRAM_BINS, "counts": chances.bins.tolist()},
            "at_least": {
                str(t): int(count) / max(chances.total, 1)
                for t, count in zip(THRESHOLDS, chances.at_least, strict=True)
            },
        },
        "policies": {
            name: {
                "policy": None if policy is None else policy.record(),
                "kinds": _tally(seen.tallies[name], is_run=seen.run is not None),
            }
            for name, policy in seen.policies.items()
        },
        "recommendation": None if advice is None else asdict(advice),
        "edits": [_edits(seen, document) for document in seen.documents],
    }
    if seen.alignment:
        record["alignment"] = {name: _tally(one) for name, one in seen.alignment.items()}
    if seen.run is not None:
        record["run"] = {
            name: {key: _number(value) for key, value in counts.items()}
            for name, counts in seen.run.items()
        }
    return record


def _tally(tally: KindTally, *, is_run: bool = False) -> dict[str, dict[str, Any]]:
    """Counts and shares of each kind, and of all tokens."""
    # A journal does not store which tokens were selected.
    columns = ("tokens", "changed", "removed") if is_run else COLUMNS
    shares = ("changed",) if is_run else ("selected", "changed")
    return {
        kind or "all": {
            **{column: tally.of(kind, column) for column in columns},
            **{f"{column}_share": _number(tally.share(kind, column)) for column in shares},
        }
        for kind in (*tally.names, None)
    }


def _edits(seen: Findings, document: Document) -> dict[str, Any]:
    piece = seen.reader.piece
    edits: dict[str, Any] = {}
    for name, edit in document.edits.items():
        changes = []
        for place in sorted(edit.changed + edit.removed):
            new = edit.after[place]
            changes.append(
                {
                    "token": place,
                    "old": piece(edit.before[place]),
                    "new": None if new is None else piece(new),
                    "old_id": edit.before[place],
                    "new_id": new,
                    "p": _number(float(document.probability[place])),
                    "kinds": [
                        kind for k, kind in enumerate(KINDS) if document.text.kinds[place] >> k & 1
                    ],
                    "candidates": [
                        [piece(token), p] for token, p in document.candidates.get(place, ())
                    ],
                }
            )
        edits[name] = {"changed": len(edit.changed), "removed": len(edit.removed)}
        if seen.run is None:
            edits[name]["selected"] = int(edit.selected.sum())
        edits[name]["changes"] = changes
    return {"name": document.name, "tokens": len(document.ids), "policies": edits}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
