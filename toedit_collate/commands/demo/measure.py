"""What the presets do to the training batches, and what the edit pass costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...editing.edit import EditResult, edit_tokens
from ...policy import EditPolicy
from ...prior.families import find_trunk, unwrap_model
from ...prior.prior import Prior
from ..bench import compare

Batch = dict[str, Any]
"""What `edit_tokens` takes of a collated batch: input_ids, attention_mask and labels."""
NUM_DRAWS = 4
_SECONDS = 10.0


@dataclass
class Shares:
    """Counts of one policy: tokens that it was applied to, resampled, changed, and removed."""

    scored: int = 0
    selected: int = 0
    changed: int = 0
    dropped: int = 0

    def add(self, result: EditResult) -> None:
        """Count one batch."""
        self.scored += int(result.scored.sum())
        self.selected += int(result.selected.sum())
        self.changed += int(result.changed.sum())
        self.dropped += int(result.dropped.sum())


@dataclass(frozen=True)
class Survey:
    """Counts of each policy, each token of `num_batches` batches being drawn `num_draws` times."""

    shares: dict[str, Shares]
    num_batches: int
    num_draws: int


def survey(prior: Prior, batches: list[Batch], policies: Mapping[str, EditPolicy]) -> Survey:
    """Edit the same batches by several policies.

    Stops after some seconds: then fewer batches are counted, or each is drawn fewer times.
    """
    shares = {name: Shares() for name in policies}
    started = time.perf_counter()
    done = 0
    for number, batch in enumerate(batches * NUM_DRAWS):
        if number and time.perf_counter() - started > _SECONDS:
            break
        for name, policy in policies.items():
            # Another epoch, another draw: the few changes of the paper's preset need many.
            shares[name].add(edit_tokens(prior, **batch, policy=policy, epoch=done // len(batches)))
        done = number + 1
    return Survey(shares, min(done, len(batches)), -(-done // len(batches)))


@dataclass(frozen=True)
class Cost:
    """Time of the edit pass / time of the backbone's forward pass, of `num_pairs` paired runs."""

    ratio: float
    lowest: float
    highest: float
    num_pairs: int
    forward_ms: float


def edit_cost(prior: Prior, batches: list[Batch], policy: EditPolicy, most: int = 15) -> Cost:
    """Compare the edit pass with the forward pass that it can't do without.

    At most `most` pairs are timed; fewer, but five at least, where that takes too long.
    """
    trunk = find_trunk(unwrap_model(prior.model))

    def forward(number: int) -> object:
        batch = batches[number % len(batches)]
        with torch.no_grad():
            inputs = {k: batch[k].to(prior.device) for k in ("input_ids", "attention_mask")}
            return trunk(**inputs, use_cache=False)

    def edit(number: int) -> object:
        return edit_tokens(prior, **batches[number % len(batches)], policy=policy)

    times = compare({"edit": edit, "forward": forward}, prior.device, rounds=most, seconds=_SECONDS)
    ratios = [a / b for a, b in zip(times["edit"], times["forward"], strict=True)]
    return Cost(
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        num_pairs=len(ratios),
        forward_ms=1000 * statistics.median(times["forward"]),
    )
