"""Describes the edits of the training data in the model card."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..training.collator import ToEditCollator
from .policies import short_name


def add_to_card(trainer: Any) -> None:
    """Append a section to every model card that a Trainer writes, also for the hub."""
    write = trainer.create_model_card

    def create_model_card(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        if trainer.is_world_process_zero():
            folder = Path(trainer.args.output_dir)
            path = folder / "README.md"
            card = path.read_text(encoding="utf-8").rstrip()
            # TRL only knows base models on the hub, and writes None for others.
            base = getattr(trainer.model.config, "_name_or_path", "") or "a new model"
            card = card.replace("[None](https://huggingface.co/None)", f"`{base}`")
            card = card.replace('model="None"', f'model="{folder}"')
            section = editing_section(trainer.data_collator)
            path.write_text(f"{card}\n\n{section}", encoding="utf-8")

    trainer.create_model_card = create_model_card


def editing_section(collator: Any) -> str:
    """The section, in Markdown; `collator` is that of the Trainer."""
    title = "## How the training data was edited\n\n"
    if not isinstance(collator, ToEditCollator) or not collator.policy.decides:
        return f"{title}It was not edited: this run is a baseline.\n"
    stats = collator.stats
    lines = [
        f"{title}[toedit_collate](https://arxiv.org/abs/2412.14689) {version('toedit_collate')} "
        "edited the training batches, not the evaluation data: a frozen prior model resampled the "
        "tokens that the policy selects (token-edited on the fly).\n",
        f"- Policy: `` {short_name(collator.policy)} ``",
        f"- Prior: {collator.prior.description}",
        f"- Of the {stats['scored']:,} tokens that one process has scored since the run last "
        f"started, {stats['selected']:,} were selected ({stats['selected_share']:.2%}), "
        f"{stats['changed']:,} changed ({stats['changed_share']:.4%}) and {stats['dropped']:,} "
        "removed.",
    ]
    if "aligned_share" in stats:
        lines.append(
            f"- {stats['aligned_share']:.1%} of the tokens begin where a token of the prior "
            "begins. The others were not edited, and all probabilities are lower bounds."
        )
    if collator.journal:
        lines.append("- Every change is recorded in the folder `journal`.")
    return "\n".join([*lines, ""])
