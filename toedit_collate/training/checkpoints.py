"""Checkpoints of a Trainer: the last complete one, and what resuming from it needs."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from ..distributed import world_size
from ..prior.sharding import is_sharded
from ..stores.journal import Journal
from ..stores.journal.files import read_valid

# What resuming needs has this name in trainer_state.json. It is not an `ExportableState` of
# transformers: those are read back into new callbacks only, and fail with older checkpoints.
STATE_KEY = "toedit_collate"


def last_checkpoint(output_dir: str | Path, generation: int | None = None) -> str | None:
    """The last checkpoint that a Trainer has finished writing: its folder, or None.

    A process that is killed while it writes leaves a partial checkpoint, which
    `resume_from_checkpoint=True` would use.

    Args:
        output_dir: of the Trainer.
        generation: number of swaps of the prior at that time (in `self_edit`, n - 1 for generation
            n); None: any.

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
    """What this package has stored in a `TrainerState`, or None."""
    return stateful_callbacks.get(STATE_KEY, {}).get("attributes")


def reload_adapter(model: Any, checkpoint: Path, optimizer: Any) -> None:
    """Load the trained adapter from a checkpoint again, and make the optimizer's weights trainable.

    Before transformers 5.23, a Trainer that resumes loads the adapters in subfolders of the
    checkpoint (a swapped prior, a frozen adapter of the user), and then not the trained one. And
    PEFT before 0.21 freezes the trained adapter while it loads a frozen one.
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


def start_journal_run(journal: Journal | None, run: str | None, step: int) -> dict[str, Any]:
    """Start a run in the journal, or continue `run` from `step`, and discard later edits.

    Returns its name `run`, and `attempt`, how often it was started or resumed before.
    """
    if journal is None:
        return {"run": None, "attempt": None}
    journal.flush()
    run = run or uuid.uuid4().hex
    shared: list[Any] = [run, journal.last_attempt(run)]
    if world_size() > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(shared)  # of rank 0
    run, last = shared
    attempt = 0 if last is None else last + 1
    journal.start_run(run, attempt=attempt, resumed_at=step)
    return {"run": run, "attempt": attempt}


def check_same_journal(saved: dict[str, Any], journal: Journal | None, step: int) -> None:
    """Raise a ValueError unless the journal belongs to the run that is resumed at `step`.

    `saved` is what the checkpoint holds of this package.
    """
    run = saved["run"]
    if journal is None and run is None:
        return
    if journal is None or run is None:
        had, has = ("no", "one") if run is None else ("a", "none")
        raise ValueError(
            f"the run that is resumed had {had} journal, and the collator has {has}; pass the same "
            "journal as before: ToEditCollator(..., journal=Journal(path)), or None"
        )
    if journal.last_attempt(run) is None:
        raise ValueError(
            f"the journal in {journal.path} has nothing of the run that is resumed (it holds "
            f"generations {journal.generations}); pass the journal that the run wrote"
        )
    later = [
        frame.info["resumed_at"]
        for _, frame in read_valid(journal.path)
        if frame.info["run"] == run and frame.info["attempt"] > saved["attempt"]
    ]
    if min(later, default=step) < step:
        raise ValueError(
            f"the run was resumed at step {min(later)} after this checkpoint of step {step}, and "
            "the journal discarded all later edits then; resume from a later checkpoint, or from "
            "one of that step or before"
        )
