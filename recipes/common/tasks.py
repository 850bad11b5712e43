"""The downstream tasks of a run."""

from __future__ import annotations

from typing import Any

from toedit_collate.config.arguments import RunArguments
from toedit_collate.errors import UnusableError

from .harness import check_installed, evaluate_tasks


def check_tasks(run_args: RunArguments) -> None:
    """Raise `UnusableError` before training where tasks are asked for and can't be run."""
    if run_args.has_tasks:
        check_installed()


def run_tasks(trainer: Any, run_args: RunArguments) -> dict[str, dict[str, float]]:
    """Run the downstream tasks that are asked for on a Trainer's model; a collective."""
    if not run_args.has_tasks:
        return {}
    try:
        return evaluate_tasks(
            trainer.model,
            trainer.processing_class,
            run_args.eval_tasks or [],
            tasks_path=run_args.eval_tasks_path,
            num_fewshot=run_args.eval_num_fewshot,
            limit=run_args.eval_limit,
            batch_size=trainer.args.per_device_eval_batch_size,
            apply_chat_template=run_args.eval_chat_template,
            seed=trainer.args.seed,
        )
    except UnusableError as error:
        # The model is trained and saved: a task that can't be run must not lose what there is.
        if trainer.args.should_save:
            print(f"eval_tasks were not run: {error}", flush=True)
        return {}
