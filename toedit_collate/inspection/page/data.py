"""An inspection as the page's script reads it: small, so that 200 documents take a few megabytes.

Texts of tokens are numbers into one list. Probabilities are whole hundred-thousandths, rounded
down, so that comparing one with a threshold of up to five digits gives what the policy decided.
Places are given by their distance from the one before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ...policy import EditPolicy
from ...tokens.alignment.ways import MEANING as WAYS
from ..alignment_table import alignment_rows
from ..inspection import Document, Edit, Inspection
from ..kinds import KINDS, MEANING
from ..tally import COLUMNS, THRESHOLDS, KindTally

SCALE = 100_000
NUM_CANDIDATES = 4
# Places whose runners-up go into the page, about 50 bytes each; the likeliest tokens first.
MAX_PLACES = 40_000
# Each kind's bits as one letter: no document has more combinations than there are letters.
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def pack(seen: Inspection) -> dict[str, Any]:
    """Everything that the page shows."""
    texts = _Texts(seen)
    chances = seen.probabilities
    total = max(chances.total, 1)
    letters = _Letters()
    keep = _places_to_keep(seen.documents)
    return {
        "data": seen.data,
        "prior": seen.prior,
        "numDocuments": seen.num_documents,
        "numTokens": seen.num_tokens,
        "perplexity": round(chances.perplexity, 2) if chances.total else None,
        "labelled": chances.total,
        "bins": chances.bins.tolist(),
        "grid": [
            [t, round(int(count) / total, 6)]
            for t, count in zip(THRESHOLDS, chances.at_least, strict=True)
        ],
        "scale": SCALE,
        "kinds": [[kind, MEANING[kind]] for kind in KINDS],
        "columns": COLUMNS,
        "alignment": alignment_rows(seen) if seen.alignment else None,
        "ways": WAYS,
        "advice": seen.recommend(),
        "policies": [
            _policy(name, policy, seen.tallies[name]) for name, policy in seen.policies.items()
        ],
        "documents": [
            _document(document, texts, letters, keep[number])
            for number, document in enumerate(seen.documents)
        ],
        "letters": letters.bits,
        "texts": texts.known,
    }


def _policy(name: str, policy: EditPolicy | None, tally: KindTally) -> dict[str, Any]:
    return {
        "name": name,
        "region": "" if policy is None else policy.region,
        "threshold": None if policy is None else policy.threshold,
        "table": tally.counts.tolist(),
    }


class _Texts:
    """Texts of tokens, each once."""

    def __init__(self, seen: Inspection) -> None:
        self.known: list[str] = []
        self._number: dict[str, int] = {}
        self._piece = seen.reader.piece

    def of(self, text: str) -> int:
        number = self._number.setdefault(text, len(self.known))
        if number == len(self.known):
            self.known.append(text)
        return number

    def of_token(self, token: int) -> int:
        return self.of(self._piece(token))


class _Letters:
    """A letter for each combination of kinds."""

    def __init__(self) -> None:
        self.bits: dict[str, int] = {}
        self._letter: dict[int, str] = {}

    def of(self, bits: int) -> str:
        if bits not in self._letter:
            self._letter[bits] = _LETTERS[len(self._letter)]
            self.bits[self._letter[bits]] = bits
        return self._letter[bits]


def _document(
    document: Document, texts: _Texts, letters: _Letters, keep: set[int]
) -> dict[str, Any]:
    return {
        "name": document.name,
        "tokens": [texts.of(piece) for piece in document.text.pieces],
        "p": [_chance(float(p)) for p in document.probability],
        "kinds": "".join(letters.of(int(bits)) for bits in document.text.kinds),
        "candidates": _candidates(document, texts, keep),
        "edits": [_edit(document, edit, texts) for edit in document.edits.values()],
    }


def _edit(document: Document, edit: Edit, texts: _Texts) -> dict[str, Any]:
    packed: dict[str, Any] = {
        "selected": _gaps(edit.selected.nonzero()[0].tolist()),
        "spared": _gaps(edit.spared.nonzero()[0].tolist()),
        # Where the policy is not applied, as runs: applied first, then not, and so on.
        "scored": _runs(edit.scored.tolist()),
        "removed": _gaps(edit.removed),
        "changed": [],
    }
    for place in edit.changed:
        new = edit.after[place]
        assert new is not None
        one = [place, texts.of_token(new)]
        if edit.before[place] != document.ids[place]:  # in a later generation
            one.append(texts.of_token(edit.before[place]))
        packed["changed"].append(one)
    return packed


def _places_to_keep(documents: list[Document]) -> list[set[int]]:
    """For each document, the places whose candidates go into the page."""
    places = [
        (not _acts(document, place), -float(document.probability[place]), number, place)
        for number, document in enumerate(documents)
        for place in document.candidates
    ]
    if len(places) > MAX_PLACES:
        places.sort()
    keep: list[set[int]] = [set() for _ in documents]
    for _, _, number, place in places[:MAX_PLACES]:
        keep[number].add(place)
    return keep


def _acts(document: Document, place: int) -> bool:
    """Whether any policy changed or removed the token there."""
    return any(edit.before[place] != edit.after[place] for edit in document.edits.values())


def _candidates(document: Document, texts: _Texts, keep: set[int]) -> list[list[int]]:
    """For each place: its number, and text and P of each candidate."""
    return [
        [place, *(x for token, p in found[:NUM_CANDIDATES] for x in (texts.of_token(token),
                                                                    _chance(p)))]
        for place, found in sorted(document.candidates.items())
        if place in keep
    ]  # fmt: skip


def _chance(p: float) -> int:
    return -1 if math.isnan(p) else math.floor(min(p, 1.0) * SCALE)


def _gaps(places: Iterable[int]) -> list[int]:
    gaps, last = [], 0
    for place in places:
        gaps.append(int(place) - last)
        last = int(place)
    return gaps


def _runs(values: list[bool]) -> list[int]:
    runs, current, count = [], True, 0
    for value in values:
        if value != current:
            runs.append(count)
            current, count = value, 0
        count += 1
    return [*runs, count]
