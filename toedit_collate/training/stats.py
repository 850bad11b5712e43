"""Running counts of the edit pass."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..distributed import all_reduce
from ..tokens.result import EditResult
from ..tokens.token_batch import TokenBatch
from ..transfer import fetch, send

COUNTS = ("batches", "tokens", "scored", "selected", "changed", "dropped")
# With a prior of another tokenizer: tokens after a document's first, and those that it can score.
ALIGNMENT = ("alignable", "aligned")
# Tokens with edit=False, and those of them that differ afterwards.
RAW = ("raw", "raw_changed")
_SUMS = (*COUNTS, "sampled", "sampled_nll", "replayed", "seconds", *ALIGNMENT, *RAW)


class EditStats:
    """Running sums over the batches that were edited.

    Counts stay on the device of the batches, and GPU times in events, until someone reads them: so
    the host does not wait.
    """

    def __init__(self) -> None:
        self._totals = dict.fromkeys(_SUMS, 0.0)
        self._pending: dict[str, Any] = {}  # on the device
        self._events: deque[tuple[Any, Any]] = deque()  # oldest first

    def add(self, result: EditResult | None, num_tokens: int, num_replayed: int = 0) -> None:
        """Count a batch; `result` is None if the journal knew all documents."""
        self._totals["batches"] += 1
        self._totals["tokens"] += num_tokens
        self._totals["replayed"] += num_replayed
        if result is not None:
            self._totals["sampled"] += result.sample_logprob.numel()
            self._add_later("sampled_nll", -result.sample_logprob.double().sum())
            for name in ("scored", "selected", "changed", "dropped"):
                self._add_later(name, getattr(result, name).sum())

    def _add_later(self, name: str, count: Tensor) -> None:
        self._pending[name] = self._pending.get(name, 0) + count.double()

    def add_alignment(self, counts: Mapping[str, int]) -> None:
        """Add the alignment counts of a prior with another tokenizer."""
        for name in ALIGNMENT:
            self._totals[name] += counts.get(name, 0)

    def add_raw(self, result: EditResult, batch: TokenBatch) -> None:
        """Count the tokens with edit=False, and those that differ nevertheless."""
        assert batch.edit is not None
        raw = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
        raw.view(-1)[batch.documents.index] = ~batch.edit
        touched = result.changed | result.dropped
        self._totals["raw"] += float(raw.sum())
        self._add_later("raw_changed", (touched & send(raw, touched.device)).sum())

    @contextmanager
    def timing(self, device: torch.device) -> Iterator[None]:
        """Measure the time of an edit pass, on a GPU with its own clock."""
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with torch.cuda.device(device):
                begin.record()
                yield
                end.record()
            self._events.append((begin, end))
            while self._events and self._events[0][1].query():
                self._count_seconds(*self._events.popleft())
        else:
            started = time.perf_counter()
            yield
            self._totals["seconds"] += time.perf_counter() - started

    def totals(self) -> dict[str, float]:
        """All sums so far; waits for the GPU."""
        if self._pending:
            for name, value in zip(self._pending, fetch(*self._pending.values()), strict=True):
                self._totals[name] += float(value)
        self._pending.clear()
        while self._events:
            begin, end = self._events.popleft()
            end.synchronize()
            self._count_seconds(begin, end)
        return dict(self._totals)

    def _count_seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> None:
        self._totals["seconds"] += begin.elapsed_time(end) / 1000

    @property
    def batches(self) -> int:
        """Number of batches so far; does not wait for the GPU."""
        return int(self._totals["batches"])

    def reset(self, totals: Mapping[str, float]) -> None:
        """Go back to sums that `totals` returned earlier."""
        self._pending.clear()
        self._events.clear()
        self._totals = dict(totals)

    def summary(self, *, over_ranks: bool = False) -> dict[str, float]:
        """Counts and shares so far, or of all ranks (a collective); see `ToEditCollator.stats`."""
        totals = self.totals()
        if over_ranks:
            totals = dict(zip(totals, all_reduce(list(totals.values())), strict=True))
        counts = {name: int(totals[name]) for name in COUNTS}
        counts["replayed"] = int(totals["replayed"])
        if totals["raw"]:
            counts |= {name: int(totals[name]) for name in RAW}
        return {**counts, "seconds": totals["seconds"], **shares(totals)}


def shares(sums: dict[str, float]) -> dict[str, float]:
    """Shares, perplexity and tokens per second, from sums; NaN where nothing was counted."""

    def ratio(a: float, b: float) -> float:
        return a / b if b else math.nan

    nll = ratio(sums["sampled_nll"], sums["sampled"])
    aligned = {"aligned_share": ratio(sums["aligned"], sums["alignable"])}
    return {
        **(aligned if sums["alignable"] else {}),
        "selected_share": ratio(sums["selected"], sums["scored"]),
        "changed_share": ratio(sums["changed"], sums["scored"]),
        "dropped_share": ratio(sums["dropped"], sums["scored"]),
        "replayed_share": ratio(sums["replayed"], sums["tokens"]),
        "prior_perplexity": math.exp(nll if math.isnan(nll) else min(nll, 700.0)),
        "tokens_per_second": ratio(sums["tokens"], sums["seconds"]),
    }
