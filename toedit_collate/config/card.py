"""The section of a model card that says how the training data was edited."""

from __future__ import annotations

import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..data.demo_text import DEMO
from ..data.files import write_text
from ..distributed import world_size
from ..policy import EditPolicy
from ..training.collator import ToEditCollator
from .run_report import RunReport

_LINKED_DATA = re.compile(r"\[([^\]\n]+)\]\(https://huggingface\.co/datasets/[^)\n]*\)")
_LISTED_DATA = re.compile(r"^datasets: (.+)\n", re.MULTILINE)
_MARK = "## How the training data was edited"


def add_to_card(
    trainer: Any, name: str, policy: EditPolicy | None, report: RunReport | None = None, *,
    is_resumed: bool = False,
) -> None:  # fmt: skip
    """Have each model card that a Trainer writes, also when it pushes, say how it was edited.

    Args:
        trainer: its `create_model_card` is wrapped.
        name: of the policy.
        policy: None: the data is not edited.
        report: of the run; what it holds when a card is written is said there.
        is_resumed: the counts begin where the run went on.
    """
    write = trainer.create_model_card

    def create_model_card(model_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        folder = Path(trainer.args.output_dir)
        write(model_name or folder.resolve().name, *args, **kwargs)
        if trainer.is_world_process_zero():
            path = folder / "README.md"
            section = editing_section(name, policy, trainer.data_collator, is_resumed=is_resumed)
            card = _without_none(path.read_text(encoding="utf-8"), trainer, folder).rstrip()
            write_text(path, f"{card}\n\n{section}{_run_section(report)}")

    trainer.create_model_card = create_model_card


def _without_none(card: str, trainer: Any, folder: Path) -> str:
    """The card with names of local models and folders, where TRL has those of the hub only."""
    base = getattr(trainer.model.config, "_name_or_path", "") or "a model made from scratch"
    card = card.replace("[None](https://huggingface.co/None)", f"`{base}`")
    card = card.replace('model="None"', f'model="{folder}"')
    card = _LINKED_DATA.sub(lambda m: f"`{m[1]}`" if _is_local(m[1]) else m[0], card)
    return _LISTED_DATA.sub(lambda m: "" if _is_local(m[1]) else m[0], card)


def _is_local(dataset: str) -> bool:
    return dataset.partition(":")[0] == DEMO or Path(dataset).exists()


def _run_section(report: RunReport | None) -> str:
    """Versions, the command, and the held-out figures as far as there are any."""
    packages = ("transformers", "trl", "peft", "torch")
    versions = ", ".join(f"{package} {_version(package)}" for package in packages)
    lines = [
        "",
        f"Made with toedit_collate {__version__} ({versions}), by",
        "",
        "```bash",
        shlex.join(["python", *sys.argv]),
        "```",
    ]
    if report is not None and report.held_out:
        lines += ["", "| held-out text, never edited | perplexity per token |", "| --- | --- |"]
        lines += [f"| {name} | {value:.4f} |" for name, value in report.held_out.items()]
    return "\n".join([*lines, ""])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cell(value: Any) -> str:
    """A value as code in a table of Markdown: an expression to protect may hold its signs."""
    text = str(value).replace("|", r"\|").replace("\n", " ")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


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
    prior = collator.prior
    partial = [
        *["counts of one process"] * (world_size() > 1),
        *["since the run went on"] * is_resumed,
    ]
    aligned = ""
    if "aligned_share" in stats:
        aligned = (
            f"\n- Aligned: {stats['aligned_share']:.1%} of the tokens begin where one of the "
            "prior's begins; the others\n  were left alone. Its probabilities are lower bounds."
        )
    settings = "\n".join(f"| {key} | {_cell(value)} |" for key, value in policy.record().items())
    return f"""{_MARK}

Training batches were token-edited on the fly by [toedit_collate](https://arxiv.org/abs/2412.14689)
(ToEdit, Zhu et al., ICML 2025): tokens to which a frozen prior model gives a probability in the
policy's region are resampled from it. Evaluation data was not edited.

- Policy: `{name}`
- Prior: {prior.description}{aligned}
- Of {stats["scored"]:,} tokens scored, {stats["selected"]:,} were selected
  ({stats["selected_share"]:.2%}) and {stats["changed"]:,} changed ({stats["changed_share"]:.4%});
  {stats["dropped"]:,} were removed{f" ({', '.join(partial)})" if partial else ""}.
- Journal of every change: {"in the folder `journal`" if collator.journal else "not kept"}.

| field of EditPolicy | value |
| --- | --- |
{settings}
"""
