"""The section of a model card that says how the training data was edited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..distributed import world_size
from ..policy import EditPolicy
from ..training.collator import ToEditCollator

_MARK = "## How the training data was edited"


def add_to_card(
    trainer: Any, name: str, policy: EditPolicy | None, *, is_resumed: bool = False
) -> None:
    """Have each model card that a Trainer writes, also when it pushes, say how it was edited."""
    write = trainer.create_model_card

    def create_model_card(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        if trainer.is_world_process_zero():
            path = Path(trainer.args.output_dir) / "README.md"
            section = editing_section(name, policy, trainer.data_collator, is_resumed=is_resumed)
            path.write_text(path.read_text().rstrip() + "\n\n" + section)

    trainer.create_model_card = create_model_card


def editing_section(
    name: str, policy: EditPolicy | None, collator: Any, *, is_resumed: bool = False
) -> str:
    """The section, in Markdown.

    Args:
        name: of the policy.
        policy: None: the data was not edited.
        collator: of the Trainer; a `ToEditCollator` if it edited the data.
        is_resumed: its counts begin where the run went on.
    """
    if policy is None or not isinstance(collator, ToEditCollator):
        return f"{_MARK}\n\nIt was not: this run is a baseline, trained on the data as it is.\n"
    stats = collator.stats
    assert collator.prior is not None
    prior = collator.prior
    partial = [
        *["counts of one process"] * (world_size() > 1),
        *["since the run went on"] * is_resumed,
    ]
    settings = "\n".join(f"| {key} | `{value}` |" for key, value in policy.record().items())
    return f"""{_MARK}

Training batches were token-edited on the fly by [toedit_collate](https://arxiv.org/abs/2412.14689)
(ToEdit, Zhu et al., ICML 2025): tokens to which a frozen prior model gives a probability in the
policy's region are resampled from it. Evaluation data was not edited.

- Policy: `{name}`
- Prior: {prior.description}
- Of {stats["scored"]:,} tokens scored, {stats["selected"]:,} were selected
  ({stats["selected_share"]:.2%}) and {stats["changed"]:,} changed ({stats["changed_share"]:.4%});
  {stats["dropped"]:,} were removed{f" ({', '.join(partial)})" if partial else ""}.
- Journal of every change: {"in the folder `journal`" if collator.journal else "not kept"}.

| field of EditPolicy | value |
| --- | --- |
{settings}
"""
