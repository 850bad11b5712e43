"""A run of training with a journal: which attempt it is, and whether the journal is the run's."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from ..stores.journal import Journal
from ..stores.journal.files import read_valid
from .refresh import share_run


@dataclass(frozen=True)
class JournalRun:
    """The run that a checkpoint belongs to.

    Attributes:
        run: its name; None without a journal.
        attempt: how often it was begun or resumed before; None without a journal.
    """

    run: str | None = None
    attempt: int | None = None

    @classmethod
    def begin(cls, journal: Journal | None, saved: dict[str, Any] | None, step: int) -> JournalRun:
        """Begin a run, or go on with one; what was edited after its checkpoint is taken back.

        Args:
            journal: of the collator, or None.
            saved: what the checkpoint holds of this package; None: the run is new.
            step: of the checkpoint; 0 for a new run.
        """
        if journal is None:
            return cls()
        run = saved["run"] if saved else uuid.uuid4().hex
        run, last = share_run(run, journal.last_attempt(run))
        attempt = 0 if last is None else last + 1
        journal.start_run(run, attempt=attempt, resumed_at=step)
        return cls(run, attempt)


def check_same_journal(saved: dict[str, Any], journal: Journal | None, step: int) -> None:
    """Raise unless a journal is the one of the run that is resumed.

    Args:
        saved: what the checkpoint holds of this package.
        journal: of the collator, or None.
        step: of the checkpoint.

    Raises:
        ValueError: it is another, or there must be one, or none; or the checkpoint is older than
            what the journal has taken back.
    """
    if saved["run"] is not None and journal is None:
        raise ValueError(
            "the run that is resumed has a journal, by which its documents are edited; pass the "
            "same: ToEditCollator(..., journal=Journal(path))"
        )
    if journal is None:
        return
    if saved["run"] is None:
        raise ValueError(
            "the run that is resumed has no journal, so what it has edited is not known; leave "
            "journal out, or begin a new run"
        )
    if journal.last_attempt(saved["run"]) is None:
        held = f"holds generations {journal.generations} of another run"
        raise ValueError(
            "the run that is resumed has a journal, but the one in "
            f"{journal.path} {held if journal.generations else 'is empty'}; pass the journal that "
            "it wrote"
        )
    later = [
        frame.info["resumed_at"]
        for _, frame, _ in read_valid(journal.path)
        if frame.info["run"] == saved["run"] and frame.info["attempt"] > saved["attempt"]
    ]
    if min(later, default=step) < step:
        raise ValueError(
            f"the checkpoint of step {step} was written before the run was resumed at step "
            f"{min(later)}, when the journal took back all later edits; resume from a checkpoint "
            "that was written since, or from one of that step or before"
        )
