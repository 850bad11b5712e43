"""Checkpoints of a Trainer: which is the last whole one, and how a run goes on from it."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..distributed import world_size
from ..prior.sharding import is_sharded
from ..stores.journal import Journal
from ..stores.journal.files import read_valid

# What resuming needs stands under this name in trainer_state.json. Not as an `ExportableState` of
# transformers: that is read back only on demand, into a new callback, and a checkpoint without it
# could not be resumed with it.
STATE_KEY = "toedit_collate"


def last_checkpoint(output_dir: str | Path, generation: int | None = None) -> str | None:
    """The last checkpoint that a Trainer has finished writing.

    A process that is killed while it writes a checkpoint leaves a part of it behind, which
    `resume_from_checkpoint=True` would take for the last.

    Args:
        output_dir: of the Trainer.
        generation: number of swaps of the prior at that time (of `self_edit`'s generation n it is
            n - 1); None: any.

    Returns:
        Its folder, or None.

    Example:
        >>> import tempfile
        >>> last_checkpoint(tempfile.mkdtemp()) is None
        True
    """
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        try:
            state = json.loads((folder / "trainer_state.json").read_text())
            step = int(state["global_step"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        saved = saved_attributes(state.get("stateful_callbacks", {})) or {}
        if generation is None or saved.get("generation") == generation:
            found.append((step, str(folder)))
    return max(found)[1] if found else None


def saved_attributes(stateful_callbacks: dict[str, Any]) -> dict[str, Any] | None:
    """What this package has put into a `TrainerState`; None: nothing."""
    return stateful_callbacks.get(STATE_KEY, {}).get("attributes")


def reload_adapter(model: Any, checkpoint: Path, optimizer: Any) -> None:
    """Put the adapter in training back to what a checkpoint holds of it, and let it train.

    Before transformers 5.23, a Trainer that resumes loads the adapters in subfolders of the
    checkpoint, if there are any, and then not the one beside them, which is the one in training; a
    swapped prior and a frozen adapter of the user's stand in subfolders. And PEFT before 0.21
    freezes the adapter in training while it loads a frozen one.

    Args:
        model: the trainee, without wrappers.
        checkpoint: its folder.
        optimizer: of the Trainer; what it updates was trainable.
    """
    file = checkpoint / "adapter_model.safetensors"
    name = getattr(model, "active_adapter", None)
    if not (isinstance(name, str) and hasattr(model, "peft_config") and file.is_file()):
        return
    if is_sharded(model) or not any(checkpoint.glob("*/adapter_model.safetensors")):
        return
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(file), adapter_name=name)
    for group in getattr(optimizer, "param_groups", ()):
        for parameter in group["params"]:
            parameter.requires_grad_(True)


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
    def begin(cls, journal: Journal | None, run: str | None, step: int) -> JournalRun:
        """Begin a run, or go on with one; what was edited after its checkpoint is taken back.

        Args:
            journal: of the collator, or None.
            run: that goes on; None: the run is new.
            step: of its checkpoint; 0: it begins, or begins again.
        """
        if journal is None:
            return cls()
        journal.flush()
        run = uuid.uuid4().hex if run is None else run
        run, last = _share_run(run, journal.last_attempt(run))
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
        for _, frame in read_valid(journal.path)
        if frame.info["run"] == saved["run"] and frame.info["attempt"] > saved["attempt"]
    ]
    if min(later, default=step) < step:
        raise ValueError(
            f"the checkpoint of step {step} was written before the run was resumed at step "
            f"{min(later)}, when the journal took back all later edits; resume from a checkpoint "
            "that was written since, or from one of that step or before"
        )


def _share_run(run: str, journal_attempt: int | None) -> tuple[str, int | None]:
    """The identity of the run and of its last attempt, as rank 0 has them; a collective."""
    if world_size() == 1:
        return run, journal_attempt
    from accelerate.utils import broadcast_object_list

    shared: list[Any] = [run, journal_attempt]
    broadcast_object_list(shared)
    return shared[0], shared[1]
