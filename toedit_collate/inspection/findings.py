"""What policies do to data, or what training did: plain data for the renderers to show."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from ..policy import EditPolicy
from .kinds import KINDS, Bool, Reader

Counts = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.int64]
COLUMNS = ("tokens", "selected", "changed", "removed", "protected")
# Thresholds that a reader may try: dense where most probabilities are, near 0 and near 1.
THRESHOLDS = (
    0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6,
    0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995,
    0.9999,
)  # fmt: skip
HISTOGRAM_BINS = 20


@dataclass(frozen=True)
class Edit:
    """What one policy, or one generation, did to T tokens.

    Attributes:
        scored: (T,) bool, tokens to which the policy applies.
        selected: (T,) bool, tokens that were resampled. A journal does not store them.
        protected: (T,) bool, tokens in the policy's region that a protection rule left alone.
        before: (T,) int64, of the source or of the generation before; -1: removed earlier.
        after: (T,) int64; -1: removed. With `target="labels"`, these are the new labels, and the
            inputs stay `before`.
    """

    scored: Bool
    selected: Bool
    protected: Bool
    before: Tokens
    after: Tokens

    @property
    def changed(self) -> list[int]:
        """Indices of tokens that became another token."""
        return np.flatnonzero((self.after >= 0) & (self.after != self.before)).tolist()

    @property
    def removed(self) -> list[int]:
        """Indices of tokens that were removed."""
        return np.flatnonzero((self.after < 0) & (self.before >= 0)).tolist()

    def part(self, part: slice) -> Edit:
        """The edit of some of the tokens, as copies: the batch need not stay in memory."""
        return Edit(*(getattr(self, one.name)[part].copy() for one in fields(self)))


@dataclass(frozen=True)
class Document:
    """A document of T tokens with its edits.

    Attributes:
        name: of its row.
        ids: T token ids of the source.
        pieces: the text that each token adds; joined, they are the document.
        kinds: (T, K), whether a token is of each of `KINDS`.
        probability: (T,) float32, P of each token; NaN where the prior gives none.
        edits: by the name of the policy or generation.
        candidates: index of a token -> (token id, P) of the most probable tokens there.
    """

    name: str
    ids: list[int]
    pieces: list[str]
    kinds: Bool
    probability: npt.NDArray[np.float32]
    edits: dict[str, Edit]
    candidates: dict[int, list[tuple[int, float]]]

    @property
    def num_edits(self) -> int:
        """Changed and removed tokens, of all policies together."""
        return sum(len(edit.changed) + len(edit.removed) for edit in self.edits.values())


@dataclass
class KindTally:
    """What one policy did, by kind of token.

    Attributes:
        counts: (K + 1, 5), the columns of `COLUMNS` for each of `KINDS`; the last row counts all
            tokens. `tokens` counts those with a label, `protected` those in the region that a
            protection left alone.
    """

    counts: Counts = field(
        default_factory=lambda: np.zeros((len(KINDS) + 1, len(COLUMNS)), np.int64)
    )

    def add(self, kinds: Bool, labelled: Bool, edit: Edit) -> None:
        """Count one document of T tokens: `kinds` is (T, K), `labelled` (T,)."""
        masks = np.zeros((len(COLUMNS), len(labelled)), np.int64)
        masks[0], masks[1], masks[4] = labelled, edit.selected, edit.protected
        masks[2, edit.changed] = 1
        masks[3, edit.removed] = 1
        self.counts[:-1] += (masks @ kinds).T
        self.counts[-1] += masks.sum(-1)

    def of(self, kind: str | None, column: str) -> int:
        """A count; `kind` None: of all tokens."""
        row = len(KINDS) if kind is None else KINDS.index(kind)
        return int(self.counts[row, COLUMNS.index(column)])

    def share(self, kind: str | None, column: str) -> float:
        """The same as a share of the tokens of that kind; NaN if it has none."""
        tokens = self.of(kind, "tokens")
        return self.of(kind, column) / tokens if tokens else float("nan")


@dataclass
class Probabilities:
    """The probabilities that the prior gives to the tokens with a label.

    Attributes:
        bins: (20,) counts of P in [0, 0.05), ..., [0.95, 1].
        at_least: for each of `THRESHOLDS`, how many tokens have P at or above it.
        total: tokens.
        sum_logprob: sum of log P, nats.
    """

    bins: Counts = field(default_factory=lambda: np.zeros(HISTOGRAM_BINS, np.int64))
    at_least: Counts = field(default_factory=lambda: np.zeros(len(THRESHOLDS), np.int64))
    total: int = 0
    sum_logprob: float = 0.0

    def add(self, logprob: npt.NDArray[np.float32]) -> None:
        """Count m tokens: `logprob` is (m,), nats, without NaN."""
        # In float32, like a policy, so that both agree at the threshold.
        cuts = np.log(np.array(THRESHOLDS)).astype(np.float32)
        self.at_least += (logprob[None, :] >= cuts[:, None]).sum(-1)
        edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
        exact = logprob.astype(np.float64)
        self.bins += np.histogram(np.exp(exact).clip(0, 1), edges)[0]
        self.total += len(logprob)
        self.sum_logprob += float(exact.sum())

    @property
    def perplexity(self) -> float:
        """Of all these tokens; NaN if there are none."""
        return float(np.exp(-self.sum_logprob / self.total)) if self.total else float("nan")


@dataclass
class Findings:
    """What policies do to data, or what training did.

    Attributes:
        policies: by name; None for a generation of a journal.
        prior: what scored, in words.
        data: what was read, in words.
        reader: turns token ids into text.
        tallies: by the name of the policy.
        probabilities: of all tokens with a label.
        documents: those that are shown, in their order.
        num_documents: how many were read.
        num_tokens: of them.
        is_aligned: whether the prior has another tokenizer than the trainee.
        run: `Journal.stats` by generation, if a training run made these edits; else None.
    """

    policies: dict[str, EditPolicy | None]
    prior: str
    data: str
    reader: Reader = field(repr=False)
    tallies: dict[str, KindTally]
    probabilities: Probabilities = field(default_factory=Probabilities)
    documents: list[Document] = field(default_factory=list)
    num_documents: int = 0
    num_tokens: int = 0
    is_aligned: bool = False
    run: dict[str, dict[str, float]] | None = None

    @property
    def title(self) -> str:
        """The heading of a page about it."""
        return "What an edit would do" if self.run is None else "What training edited"

    def text_before(self, document: Document, edit: Edit, place: int) -> str:
        """The text of a token before an edit."""
        token = int(edit.before[place])
        if token == document.ids[place]:
            return document.pieces[place]
        return self.reader.piece(token) if token >= 0 else ""

    def text_after(self, edit: Edit, place: int) -> str:
        """The text of a token after an edit; "" if it was removed."""
        token = int(edit.after[place])
        return self.reader.piece(token) if token >= 0 else ""

    def targets_labels(self, name: str) -> bool:
        """Whether this policy redraws labels and leaves the inputs as they are."""
        policy = self.policies[name]
        return policy is not None and policy.target == "labels"

    def num_draws(self, name: str) -> int:
        """How many draws each label becomes; an `Edit` has the first of them."""
        policy = self.policies[name]
        return 1 if policy is None else policy.num_draws
