"""Checkpoints of a Trainer: which is the last whole one, and what this package needs from one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..prior.sharding import is_sharded

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
