"""What policies, or the generations of a journal, do to some data: documents and tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..policy import EditPolicy
from .kinds import Reader, Text
from .tally import KindTally, Probabilities

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Edit:
    """What one policy, or one generation, did to a document of T tokens.

    Attributes:
        scored: (T,) bool, tokens to which the policy is applied.
        selected: (T,) bool, resampled.
        spared: (T,) bool, in the region, but protected.
        before: T token ids: those of the source, or of the generation before; -1: removed there.
        after: T token ids; None: removed.
    """

    scored: Bool
    selected: Bool
    spared: Bool
    before: list[int]
    after: list[int | None]

    @property
    def changed(self) -> list[int]:
        """Places where another token came out."""
        pairs = enumerate(zip(self.before, self.after, strict=True))
        return [i for i, (old, new) in pairs if new is not None and new != old]

    @property
    def removed(self) -> list[int]:
        """Places of tokens that were taken out."""
        pairs = enumerate(zip(self.before, self.after, strict=True))
        return [i for i, (old, new) in pairs if new is None and old >= 0]


@dataclass(frozen=True)
class Document:
    """A document, and what became of it.

    Attributes:
        name: of its row.
        ids: T token ids of the source.
        text: the same as text, with kinds.
        probability: (T,) float32, P of each token; NaN where there is none.
        edits: by the name of the policy or generation.
        candidates: place -> (token id, P) of the most probable tokens there.
        ways: (T,) int64, which of `WAYS` each token is scored in, -1 where it has no part in it;
            None: the prior has the same tokenizer.
    """

    name: str
    ids: list[int]
    text: Text
    probability: npt.NDArray[np.float32]
    edits: dict[str, Edit]
    candidates: dict[int, list[tuple[int, float]]]
    ways: npt.NDArray[np.int64] | None = None

    @property
    def num_edits(self) -> int:
        """Changed and removed tokens, of all policies."""
        return sum(len(edit.changed) + len(edit.removed) for edit in self.edits.values())

    @property
    def num_selected(self) -> int:
        """Selected tokens, of all policies."""
        return sum(int(edit.selected.sum()) for edit in self.edits.values())


@dataclass
class Inspection:
    """What policies do to data.

    Attributes:
        policies: by name; None where a generation of a journal stands in its place.
        documents: those that are kept to be shown, the first first.
        tallies: by policy.
        probabilities: of all tokens with a label that were looked at.
        num_documents: looked at.
        num_tokens: of them.
        prior: what scored, in words.
        data: what was read, in words.
        reader: makes text of token ids.
        alignment: as `tallies`, by the way in which tokens are scored instead of their kind; empty
            where the prior has the same tokenizer.
        own: the same data through the prior's own tokenizer, where that was asked for.
    """

    policies: dict[str, EditPolicy | None]
    documents: list[Document]
    tallies: dict[str, KindTally]
    probabilities: Probabilities
    num_documents: int
    num_tokens: int
    prior: str
    data: str
    reader: Reader = field(repr=False)
    alignment: dict[str, KindTally] = field(default_factory=dict)
    own: Inspection | None = field(default=None, repr=False)

    def to_html(self) -> str:
        """One page that needs no network; see `toedit_collate.inspection.page`."""
        from .page import as_page

        return as_page(self)

    def to_dict(self) -> dict[str, Any]:
        """All figures, and the documents' edits, as JSON has them."""
        from .records import as_record

        return as_record(self)

    def recommend(self) -> list[str]:
        """Which policy to begin with, and why, in sentences; the choice stays the reader's."""
        from .advice import recommend

        return recommend(self)

    def __str__(self) -> str:
        from .terminal import show

        return show(self, color=False)

    def _repr_html_(self) -> str:
        """The page, for notebooks."""
        import html

        page = html.escape(self.to_html(), quote=True)
        style = "width:100%;height:48rem;border:0"
        return f'<iframe style="{style}" title="toedit inspect" srcdoc="{page}"></iframe>'
