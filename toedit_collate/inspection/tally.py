"""Counts of what policies do, by kind of token; and of the probabilities that decide it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .kinds import KINDS

Counts = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
COLUMNS = ("tokens", "selected", "changed", "removed", "spared")
# Thresholds that a reader may try: dense where most tokens' probabilities are, at both ends.
THRESHOLDS = (
    0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6,
    0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995,
    0.9999,
)  # fmt: skip
HISTOGRAM_BINS = 20


@dataclass
class KindTally:
    """What one policy did, by kind of token.

    Attributes:
        names: K kinds.
        counts: (K + 1, 5): for each kind, and in the last row for all tokens, how many
            tokens with a label there are; selected, changed, removed ones; and those in the
            region that a protection spared.
    """

    names: tuple[str, ...] = KINDS
    counts: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((len(self.names) + 1, len(COLUMNS)), np.int64)

    def add(
        self,
        kinds: npt.NDArray[np.uint16],
        labelled: Bool,
        selected: Bool,
        changed: Bool,
        removed: Bool,
        spared: Bool,
    ) -> None:
        """Count the tokens of one document; all arguments are (T,), bit k of `kinds` is kind k."""
        masks = np.stack([labelled, selected, changed, removed, spared])
        for k in range(len(self.names)):
            self.counts[k] += masks[:, (kinds >> k & 1).astype(bool)].sum(-1)
        self.counts[-1] += masks.sum(-1)

    def of(self, kind: str | None, column: str) -> int:
        """How many: tokens, selected, changed, removed or spared; kind None: of all tokens."""
        row = len(self.names) if kind is None else self.names.index(kind)
        return int(self.counts[row, COLUMNS.index(column)])

    def share(self, kind: str | None, column: str) -> float:
        """As `of`, as a share of that kind's tokens; NaN where it has none."""
        tokens = self.of(kind, "tokens")
        return self.of(kind, column) / tokens if tokens else float("nan")


@dataclass
class Probabilities:
    """How probable the prior finds the tokens that have a label.

    Attributes:
        bins: (20,) counts of P in [0, 0.05), ..., [0.95, 1].
        at_least: for each of `THRESHOLDS`, how many tokens have P at or above it.
        total: tokens.
        sum_logprob: of log P, nats.
    """

    bins: Counts = field(default_factory=lambda: np.zeros(HISTOGRAM_BINS, np.int64))
    at_least: Counts = field(default_factory=lambda: np.zeros(len(THRESHOLDS), np.int64))
    total: int = 0
    sum_logprob: float = 0.0

    def add(self, logprob: npt.NDArray[np.float32], weight: int = 1) -> None:
        """Count some tokens, each as so many: (m,) log P in nats, none of them NaN."""
        # In float32 as a policy does it, so that both say the same at the threshold.
        cuts = np.log(np.array(THRESHOLDS)).astype(np.float32)
        self.at_least += weight * (logprob[None, :] >= cuts[:, None]).sum(-1)
        edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
        chances = np.exp(logprob.astype(np.float64)).clip(0, 1)
        self.bins += weight * np.histogram(chances, edges)[0]
        self.total += weight * len(logprob)
        self.sum_logprob += weight * float(logprob.astype(np.float64).sum())

    @property
    def perplexity(self) -> float:
        """Of all these tokens; NaN where there is none."""
        return float(np.exp(-self.sum_logprob / self.total)) if self.total else float("nan")
