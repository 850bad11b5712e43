"""One run of several generations, with what is written and compared of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from transformers import Trainer, TrainingArguments, set_seed

from toedit_collate.config.arguments import EditArguments, RunArguments
from toedit_collate.config.card import add_to_card
from toedit_collate.config.models import check_prior, load_prior
from toedit_collate.config.run_report import RunReport
from toedit_collate.data.files import write_json
from toedit_collate.errors import UnusableError
from toedit_collate.policy import EditPolicy
from toedit_collate.prior.prior import Prior
from toedit_collate.training.generations import format_reports, self_edit

from .finish import write_samples
from .folder import keep_dataset
from .samples import Samples, scoring_prior
from .tasks import check_tasks, run_tasks
from .variants import run_all

# Nothing is selected: the baseline goes through the same generations on the source data.
_UNEDITED = EditPolicy(region="none")


def run_generations(
    make_trainer: Callable[[Any, Path | None], Trainer],
    args: TrainingArguments,
    run_args: RunArguments,
    edit: EditArguments,
    *,
    generations: int,
    start: Literal["base", "previous"] = "base",
) -> list[RunReport]:
    """Train generation after generation, each on data edited by the one before; see `self_edit`.

    Also once for each policy and seed that is to be compared; see `run_all`. A run that was killed
    goes on where it was when it is started again.

    Args:
        make_trainer: (args, weights) -> a new Trainer, without editing, whose model comes from the
            folder `weights`, or from the base where that is None.
        args: of each generation's training.
        run_args: what is compared.
        edit: the policy and the first prior.
        generations: how many.
        start: "base": each generation trains the base afresh; "previous": it goes on training.

    Returns:
        A report of each run, with `held_out` of each generation; 0 is the prior as it came.
        Downstream tasks are those of the last generation's model.

    Raises:
        UnusableError: `refresh` or `decision_cache` are set, which have no place here.
    """
    for field, is_set in (("refresh", edit.refresh), ("decision_cache", edit.cache_path)):
        if is_set:
            raise UnusableError(
                f"{field} is set, but generations swap the prior after each training, and a "
                "journal keeps its edits; leave it out"
            )
    check_tasks(run_args)
    check_prior(edit)

    def run_once(
        own: Any, name: str, policy: EditPolicy | None
    ) -> tuple[RunReport, Trainer | None]:
        trainers: list[Any] = []
        report = RunReport(policy=name, seed=own.seed, folder=str(own.output_dir))

        def make(number: int, weights: Path | None) -> Trainer:
            set_seed(own.seed)
            trainers[:] = [make_trainer(own, weights)]
            sets = trainers[0].eval_dataset
            if isinstance(sets, dict):
                if len(sets) > 1:
                    raise UnusableError(
                        f"held_out must be one set where generations are compared, got "
                        f"{', '.join(sets)}; keep one of them"
                    )
                (trainers[0].eval_dataset,) = sets.values()
            add_to_card(trainers[0], name, policy, report)
            keep_dataset(trainers[0], own.output_dir)
            return trainers[0]

        priors: list[Prior] = []

        samples = Samples(run_args.num_samples, None)

        def prior_of(trainer: Trainer) -> Prior:
            if edit.prior == "shared" or not priors:
                priors[:] = [load_prior(edit, trainer)]
            if edit.later_prior == "swapped":  # else another one edits later batches
                samples.prior = scoring_prior(priors[0])
            return priors[0]

        started = time.perf_counter()
        reports = self_edit(
            make,
            prior_of,
            policy or _UNEDITED,
            generations=generations,
            output_dir=own.output_dir,
            start=start,
            later_prior=edit.later_prior,
            on_edit=samples.add,
        )
        tasks: dict[str, dict[str, float]] = {}
        if trainers:
            tasks = run_tasks(trainers[0], run_args)
            samples.adopt_tokenizer(trainers[0].processing_class)
            write_samples(own, samples)
        if own.should_save:
            print(format_reports(reports))
            content = [dataclasses.asdict(report) for report in reports]
            write_json(Path(own.output_dir) / "generations.json", content)
        last = reports[-1]
        report.train["seconds"] = time.perf_counter() - started
        if last.train_loss is not None:
            report.train["loss"] = last.train_loss
        report.edit = {} if policy is None else _counts(last)
        report.held_out = {
            f"generation {one.generation}": one.perplexity
            for one in reports
            if one.perplexity is not None
        }
        report.tasks = tasks
        return report, trainers[0] if trainers else None

    return run_all(run_once, args, run_args, edit)


def _counts(report: Any) -> dict[str, float]:
    names = (
        "tokens",
        "scored",
        "selected",
        "changed",
        "dropped",
        "selected_share",
        "changed_share",
    )
    return {name: getattr(report, name) for name in names}
