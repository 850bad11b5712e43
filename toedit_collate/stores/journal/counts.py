"""What the frames of a journal say together: counts of each generation, and what made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .files import read_valid
from .frames import STEP_COLUMNS


def counts_of(folder: Path) -> dict[int, dict[str, float]]:
    """See `Journal.stats`."""
    sums: dict[int, dict[str, float]] = {}
    for _, frame, holds in read_valid(folder):
        if not holds.any():
            continue
        of = sums.setdefault(
            frame.info["generation"], dict.fromkeys((*STEP_COLUMNS[1:], "dropped"), 0)
        )
        # What is void is void by its step: of a step, all documents hold, or none does.
        kept = np.isin(frame.steps["step"], frame.step_of_document[holds])
        for name in STEP_COLUMNS[1:]:
            of[name] += int(frame.steps[name][kept].sum())
        new = frame.changes[np.repeat(holds, frame.counts), 2]
        of["dropped"] += int((new < 0).sum())
    for of in sums.values():
        for name in ("selected", "changed"):
            of[f"{name}_share"] = of[name] / of["scored"] if of["scored"] else float("nan")
    return dict(sorted(sums.items()))


def check_may_start(folder: Path, generation: int, prior: str, policy: dict[str, Any]) -> None:
    """See that a generation can be edited by this prior with this policy.

    Raises:
        ValueError: another prior or policy made this generation, or there are later ones.
    """
    for _, frame, holds in read_valid(folder):
        there = frame.info["generation"]
        if not holds.any():
            continue
        if there > generation:
            raise ValueError(
                f"the journal {folder} already holds generation {there}, so generation "
                f"{generation} can't be edited any more; resume the run that wrote it "
                "(resume_from_checkpoint=True), give this run a new journal, or delete the "
                "folder if that run is not wanted"
            )
        if there == generation:
            _check_made_alike(folder, frame.info, prior, policy)


def _check_made_alike(
    folder: Path, there: dict[str, Any], prior: str, policy: dict[str, Any]
) -> None:
    generation = there["generation"]
    if there["prior"] != prior:
        raise ValueError(
            f"generation {generation} of the journal {folder} was made with another prior (or the "
            "same in another precision); give the run a new journal, or, to go on with the next "
            f"generation, set prior.generation = {generation}"
        )
    for name in sorted({*policy, *there["policy"]}):
        before, now = there["policy"].get(name), policy.get(name)
        if before != now:
            raise ValueError(
                f"generation {generation} of the journal {folder} was made with "
                f"{name}={before!r} in its policy, now it is {now!r}; give the run a new journal"
            )
