"""Runs of several generations (`self_edit`), each with what is measured of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from transformers import Trainer, TrainingArguments, set_seed

from toedit_collate.config.arguments import EditArguments
from toedit_collate.config.card import add_to_card
from toedit_collate.config.priors import load_prior
from toedit_collate.data.files import write_json
from toedit_collate.errors import UnusableError
from toedit_collate.policy import EditPolicy
from toedit_collate.prior.prior import Prior
from toedit_collate.training.generations import format_reports, self_edit

from .arguments import RunArguments
from .models import check_prior
from .runs import RunReport, keep_dataset, run_all
from .tasks import check_evaluation, check_tasks, run_tasks
from .training import mean_loss

# Nothing is selected: the baseline goes through the same generations on the source data.
_UNEDITED = EditPolicy(region="none")
_COUNTS = ("tokens", "scored", "selected", "changed", "dropped", "selected_share", "changed_share")


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
        UnusableError: `refresh` or `decision_cache` are set, which have no place here; or as `run`.
    """
    for field, is_set in (("refresh", edit.refresh), ("decision_cache", edit.cache_path)):
        if is_set:
            raise UnusableError(
                f"{field} is set, but generations swap the prior after each training, and a "
                "journal keeps its edits; leave it out"
            )
    run_args.spread_batch(args, args.world_size * max(args.n_gpu, 1))
    check_tasks(run_args)
    check_prior(edit)

    def run_once(
        own: Any, name: str, policy: EditPolicy | None
    ) -> tuple[RunReport, Trainer | None]:
        trainers: list[Any] = []
        priors: list[Prior] = []

        def make(number: int, weights: Path | None) -> Trainer:
            set_seed(own.seed)
            trainer = make_trainer(own, weights)
            sets = trainer.eval_dataset
            if isinstance(sets, dict):
                if len(sets) > 1:
                    raise UnusableError(
                        f"held_out must be one set where generations are compared, got "
                        f"{', '.join(sets)}; keep one of them"
                    )
                (trainer.eval_dataset,) = sets.values()
            check_evaluation(trainer, run_args)
            add_to_card(trainer)
            keep_dataset(trainer)
            trainers[:] = [trainer]
            return trainer

        def prior_of(trainer: Trainer) -> Prior:
            if edit.prior == "shared" or not priors:
                priors[:] = [load_prior(edit, trainer)]
            return priors[0]

        started = time.perf_counter()
        found = self_edit(
            make,
            prior_of,
            policy or _UNEDITED,
            generations=generations,
            output_dir=own.output_dir,
            start=start,
        )
        if own.should_save:
            print(format_reports(found))
            content = [dataclasses.asdict(one) for one in found]
            write_json(Path(own.output_dir) / "generations.json", content)
        last = found[-1]
        report = RunReport(policy=name, seed=own.seed, folder=str(own.output_dir))
        report.train = {"seconds": time.perf_counter() - started}
        if trainers and (loss := mean_loss(trainers[0])) is not None:
            report.train["loss"] = loss
        if policy is not None:
            report.edit = {count: getattr(last, count) for count in _COUNTS}
        report.held_out = {
            f"generation {one.generation}": one.perplexity
            for one in found
            if one.perplexity is not None
        }
        if not trainers:  # all generations were there
            return report, None
        saved = Path(own.output_dir) / f"generation-{last.generation}"
        report.tasks = run_tasks(trainers[0], run_args, saved)
        return report, trainers[0]

    return run_all(run_once, args, run_args, edit)
