"""self_edit(): generations over one dataset, each edited by a model trained on the last (Eq. 3).

Their models are measured by held-out perplexity.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Subset
from transformers import Trainer

from ..distributed import all_reduce, barrier, rank, world_size
from ..editing.edit import edit_batch
from ..policy import EditPolicy
from ..prior.base import BasePrior
from ..prior.prior import Prior
from ..stores.journal import Journal
from ..tokens.token_batch import TokenBatch
from .callback import attach
from .checkpoints import last_checkpoint
from .collator import ToEditCollator

MakeTrainer = Callable[[int, Path | None], Trainer]
_REPORT = "toedit_report.json"
_SCORE_ONLY = EditPolicy(region="none")
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
        ValueError: an argument has a wrong value, the prior has been swapped before, or
            `output_dir` holds generations with another policy or `start`.
    """
    if generations < 1:
        raise ValueError(f"generations must be a positive number, got {generations!r}")
    if start not in ("base", "previous"):
        raise ValueError(f"start must be 'base' or 'previous', got {start!r}")
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
        # The prior is swapped here: `refresh` among the settings is an error.
        attach(trainer, own, policy, journal=journal, refresh=None, **collator_settings)
        if is_first:
            first = GenerationReport(generation=0, perplexity=perplexity_of(trainer, own))
            reports.append(_finish(first, before, trainer, made_with))
        trainer.train(
            resume_from_checkpoint=last_checkpoint(trainer.args.output_dir or folder, number - 1)
        )
        journal.flush()
        barrier()
        unfinished = here.with_name(f"{here.name}.unfinished")
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


def _finish(
    report: GenerationReport, folder: Path, trainer: Trainer, made_with: Any
) -> GenerationReport:
    """Write a report, and give the folder its name once it is complete."""
    if trainer.args.should_save:
        unfinished = folder.with_name(f"{folder.name}.unfinished")
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


def held_out_perplexity(
    prior: BasePrior, batches: Iterable[dict[str, Any]], *, over_ranks: bool = False
) -> float:
    """Exact perplexity per token, each document on its own; NaN without tokens.

    Source: arXiv:2412.14689, Appendix C.2.

    First tokens and tokens with the label -100 do not count. With `over_ranks`, each rank has other
    batches, and all ranks must call this.
    """
    nll, count = 0.0, 0.0
    for batch in batches:
        source = TokenBatch.collated(batch, tokenizer=prior.tokenizer)
        result = edit_batch(prior, _SCORE_ONLY, source, epoch=0, generation=0, return_logprob=True)
        assert result.logprob is not None
        counts = ~result.logprob.isnan()
        if result.labels is not None:
            counts &= result.labels != -100
        nll -= float(result.logprob[counts].double().sum())
        count += float(counts.sum())
    if over_ranks:
        nll, count = all_reduce([nll, count])
    return math.exp(nll / count) if count else math.nan


def perplexity_of(trainer: Trainer, prior: BasePrior, dataset: str | None = None) -> float | None:
    """Held-out perplexity of a prior on a Trainer's `eval_dataset`; None without one. Collective.

    If `eval_dataset` is a dict, `dataset` is the name of one.
    """
    if trainer.eval_dataset is None:
        return None
    if isinstance(trainer.eval_dataset, dict) and dataset not in trainer.eval_dataset:
        raise ValueError(
            f"dataset must be one of the Trainer's {sorted(trainer.eval_dataset)}, got {dataset!r}"
        )
    # The Trainer's own loader, since it drops the columns that the model does not take; but with
    # the base collator.
    collator = trainer.data_collator
    if isinstance(collator, ToEditCollator):
        trainer.data_collator = collator.base_collator  # type: ignore[assignment]
    try:
        loader: Any = trainer.get_eval_dataloader(dataset)
    finally:
        trainer.data_collator = collator
    loader = getattr(loader, "base_dataloader", loader)
    # A forward pass of a sharded prior needs all ranks, so all go through the same batches.
    together = world_size() == 1 or prior.is_sharded
    rows = range(0 if together else rank(), len(loader.dataset), 1 if together else world_size())
    batches = DataLoader(
        Subset(loader.dataset, rows),
        batch_size=trainer.args.eval_batch_size,
        collate_fn=loader.collate_fn,
    )
    with torch.no_grad():
        return held_out_perplexity(prior, batches, over_ranks=not together)
