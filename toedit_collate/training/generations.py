"""self_edit(): generations over one dataset, each edited by a model trained on the last (Eq. 3)."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import Trainer

from ..distributed import barrier
from ..policy import EditPolicy
from ..prior.prior import Prior
from ..stores.journal import Journal
from .attach import attach
from .checkpoints import last_checkpoint
from .perplexity import perplexity_of

MakeTrainer = Callable[[int, Path | None], Trainer]
_REPORT = "toedit_report.json"
_COUNTS = ("tokens", "scored", "selected", "changed", "dropped")


@dataclass(frozen=True, kw_only=True)
class GenerationReport:
    """One generation: its counts of tokens, and its model. 0 is the prior before any edit.

    `perplexity` is held-out, per token, of the model trained on the generation; None without an
    eval_dataset.
    """

    generation: int
    tokens: int = 0
    scored: int = 0
    selected: int = 0
    changed: int = 0
    dropped: int = 0
    perplexity: float | None = None
    folder: str | None = None

    @property
    def selected_share(self) -> float:
        """Share of the scored tokens that were selected, as in Table 9."""
        return self.selected / self.scored if self.scored else math.nan

    @property
    def changed_share(self) -> float:
        """Share of the scored tokens that were changed."""
        return self.changed / self.scored if self.scored else math.nan


def self_edit(
    make_trainer: MakeTrainer,
    prior: Prior | Callable[[Trainer], Prior],
    policy: EditPolicy | None = None,
    *,
    generations: int,
    output_dir: str | Path,
    start: Literal["base", "previous"] = "base",
    journal: Journal | None = None,
    **collator_settings: Any,
) -> list[GenerationReport]:
    """Train k generations; the model of generation n-1 edits the data of generation n.

    The prior edits generation 1. After each generation, its model is saved in
    `output_dir/generation-n`, and becomes the prior of the next. Call it again after a kill: it
    keeps the finished generations, and continues from the last complete checkpoint.
    `recipes/self_edit.py` is an example.

    Source: arXiv:2412.14689, section 3.2, Eq. 3 and Table 9.

    Args:
        make_trainer: (generation, weights) -> a new Trainer on the *source* dataset. Its model
            comes from the folder `weights`, or from the base if `weights` is None. Its
            `eval_dataset`, if any, is the held-out set.
        prior: a separate prior; or a function that makes one from each generation's Trainer:
            `lambda trainer: Prior.shared(trainer.model)`.
        policy: which tokens are edited, and how; default: the paper's.
        generations: k, how many.
        output_dir: folder for the models, the journal and a report of each generation.
        start: "base": each generation trains the base from the start; "previous": it continues with
            the model of the generation before.
        journal: default: in `output_dir/journal`.
        collator_settings: further settings for `ToEditCollator`.

    Returns:
        A report of generation 0 (the first prior) and of each generation.

    Raises:
        ValueError: an argument has a wrong value, the prior has been swapped before, `refresh` is
            among the settings, or `output_dir` holds generations with another policy or `start`.
    """
    if generations < 1:
        raise ValueError(f"generations must be a positive number, got {generations!r}")
    if start not in ("base", "previous"):
        raise ValueError(f"start must be 'base' or 'previous', got {start!r}")
    if "refresh" in collator_settings:
        raise ValueError(
            "self_edit swaps the prior after each generation; leave refresh out, or train one run "
            "with ToEditCallback(collator, refresh=...)"
        )
    if not callable(prior) and prior.generation != 0:
        raise ValueError(
            f"prior must not have been swapped, got one of generation {prior.generation}; load it "
            "again"
        )
    folder = Path(output_dir)
    journal = Journal(folder / "journal") if journal is None else journal
    policy = EditPolicy() if policy is None else policy
    made_with = {"start": start, **policy.record()}
    reports: list[GenerationReport] = []
    for number in range(1, generations + 1):
        here, before = (folder / f"generation-{n}" for n in (number, number - 1))
        is_first = number == 1
        earlier, finished = (_read_report(each, made_with) for each in (before, here))
        if earlier is not None and finished is not None:
            reports += [earlier, finished] if is_first else [finished]
            continue
        trainer = make_trainer(number, before if start == "previous" and not is_first else None)
        own = prior(trainer) if callable(prior) else prior
        own.check_can_swap()
        if not is_first:
            own.swap(before)
            own.generation = number - 1
        attach(trainer, own, policy, journal=journal, **collator_settings)
        if is_first:
            first = GenerationReport(generation=0, perplexity=perplexity_of(trainer, own))
            reports.append(_finish(first, before, trainer, made_with))
        trainer.train(
            resume_from_checkpoint=last_checkpoint(trainer.args.output_dir or folder, number - 1)
        )
        journal.flush()
        barrier()
        unfinished = _unfinished(here)
        trainer.save_model(str(unfinished))
        barrier()
        own.swap(unfinished)
        counts = journal.stats().get(number, {})
        report = GenerationReport(
            generation=number,
            **{name: int(counts.get(name, 0)) for name in _COUNTS},  # type: ignore[arg-type]
            perplexity=perplexity_of(trainer, own),
            folder=str(here),
        )
        reports.append(_finish(report, here, trainer, made_with))
    return reports


def format_reports(reports: Sequence[GenerationReport]) -> str:
    """The reports as a table, like Table 9.

    Example:
        >>> first = GenerationReport(generation=1, scored=1000, selected=125, changed=40)
        >>> print(format_reports([GenerationReport(generation=0, perplexity=11.5), first]))
        generation      scored            selected             changed  held-out perplexity
                 0           -                   -                   -              11.5000
                 1       1,000        125 (12.50%)        40 (4.0000%)                    -
    """
    lines = ["generation      scored            selected             changed  held-out perplexity"]
    for report in reports:
        perplexity = "-" if report.perplexity is None else f"{report.perplexity:.4f}"
        numbers = f"{'-':>12}{'-':>20}{'-':>20}"
        if report.generation:
            selected = f"{report.selected:,} ({report.selected_share:.2%})"
            changed = f"{report.changed:,} ({report.changed_share:.4%})"
            numbers = f"{report.scored:>12,}{selected:>20}{changed:>20}"
        lines.append(f"{report.generation:>10}{numbers}{perplexity:>21}")
    return "\n".join(lines)


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.unfinished")


def _finish(
    report: GenerationReport, folder: Path, trainer: Trainer, made_with: Any
) -> GenerationReport:
    """Write a report, and give the folder its name once it is complete."""
    if trainer.args.should_save:
        unfinished = _unfinished(folder)
        unfinished.mkdir(parents=True, exist_ok=True)
        content = {"report": dataclasses.asdict(report), "made_with": made_with}
        (unfinished / _REPORT).write_text(json.dumps(content, indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    barrier()
    return report


def _read_report(folder: Path, made_with: dict[str, Any]) -> GenerationReport | None:
    """The report of a finished generation, or None."""
    if not (folder / _REPORT).is_file():
        return None
    content = json.loads((folder / _REPORT).read_text())
    for name, value in made_with.items():
        if content["made_with"].get(name) != value:
            raise ValueError(
                f"output_dir holds {folder.name}, which was made with "
                f"{name}={content['made_with'].get(name)!r}, but {name} is {value!r} now; pass "
                "another output_dir"
            )
    return GenerationReport(**content["report"])
