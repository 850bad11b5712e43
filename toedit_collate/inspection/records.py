"""An inspection as JSON has it."""

from __future__ import annotations

import math
from typing import Any

from .inspection import Document, Inspection
from .kinds import KINDS
from .tally import COLUMNS, HISTOGRAM_BINS, THRESHOLDS, KindTally, Probabilities


def as_record(seen: Inspection) -> dict[str, Any]:
    """All figures, and each edit of the documents that were kept."""
    record = {
        "prior": seen.prior,
        "data": seen.data,
        "documents": seen.num_documents,
        "tokens": seen.num_tokens,
        "probabilities": record_of_probabilities(seen.probabilities),
        "policies": {
            name: {
                "policy": None if policy is None else policy.record(),
                "kinds": record_of_tally(seen.tallies[name]),
            }
            for name, policy in seen.policies.items()
        },
        "recommendation": seen.recommend(),
        "edits": [_edits(seen, document) for document in seen.documents],
    }
    if seen.alignment:
        record["alignment"] = {
            name: record_of_tally(tally) for name, tally in seen.alignment.items()
        }
    if seen.own is not None:
        record["own_tokens"] = {
            name: record_of_tally(tally)["all"] for name, tally in seen.own.tallies.items()
        }
    return record


def record_of_tally(tally: KindTally) -> dict[str, dict[str, Any]]:
    """Counts and shares of each kind, and of all tokens."""
    return {
        kind or "all": {
            **{column: tally.of(kind, column) for column in COLUMNS},
            "selected_share": _number(tally.share(kind, "selected")),
            "changed_share": _number(tally.share(kind, "changed")),
        }
        for kind in (*tally.names, None)
    }


def record_of_probabilities(chances: Probabilities) -> dict[str, Any]:
    """The histogram, and the shares at or above thresholds."""
    total = max(chances.total, 1)
    return {
        "tokens": chances.total,
        "perplexity": _number(chances.perplexity),
        "histogram": {"bins": HISTOGRAM_BINS, "counts": chances.bins.tolist()},
        "at_least": {
            str(t): int(count) / total
            for t, count in zip(THRESHOLDS, chances.at_least, strict=True)
        },
    }


def _edits(seen: Inspection, document: Document) -> dict[str, Any]:
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
                    "kinds": kinds_of(int(document.text.kinds[place])),
                    "candidates": [
                        [piece(token), p] for token, p in document.candidates.get(place, ())
                    ],
                }
            )
        edits[name] = {
            "selected": int(edit.selected.sum()),
            "changed": len(edit.changed),
            "removed": len(edit.removed),
            "changes": changes,
        }
    return {"name": document.name, "tokens": len(document.ids), "policies": edits}


def kinds_of(bits: int) -> list[str]:
    """The names of the kinds whose bits are set."""
    return [kind for k, kind in enumerate(KINDS) if bits >> k & 1]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
