"""One run of a Trainer: training, and what is measured after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import Trainer, TrainingArguments, set_seed

from toedit_collate.config.arguments import EditArguments
from toedit_collate.config.card import add_to_card
from toedit_collate.distributed import barrier
from toedit_collate.policy import EditPolicy
from toedit_collate.prior.prior import Prior
from toedit_collate.prior.sharding import has_fsdp1, is_zero3
from toedit_collate.training.checkpoints import last_checkpoint
from toedit_collate.training.collator import ToEditCollator
from toedit_collate.training.generations import perplexity_of

from .arguments import RunArguments
from .models import check_prior
from .runs import RunReport, keep_dataset, run_all
from .tasks import check_evaluation, check_tasks, run_tasks

MakeTrainer = Callable[[Any, EditPolicy | None], Trainer]


def run(
    make_trainer: MakeTrainer, args: TrainingArguments, run_args: RunArguments, edit: EditArguments
) -> list[RunReport]:
    """Train once, or once for each policy and seed that is to be compared; see `run_all`.

    Args:
        make_trainer: (args, policy) -> a new Trainer, whose batches are edited by the policy; not
            edited where that is None.
        args: of the training. With `resume_from_checkpoint=true`, a run goes on at the last whole
            checkpoint in its folder, if there is one.
        run_args: what is compared and measured.
        edit: the policy.

    Returns:
        A report of each run.

    Raises:
        UnusableError: the prior or a downstream task does not exist, or what is trained could not
            be evaluated; before training.
    """
    run_args.spread_batch(args, args.world_size * max(args.n_gpu, 1))
    check_tasks(run_args)
    check_prior(edit)

    def run_once(own: Any, name: str, policy: EditPolicy | None) -> tuple[RunReport, Trainer]:
        set_seed(own.seed)
        trainer = make_trainer(own, policy)
        check_evaluation(trainer, run_args)
        add_to_card(trainer)
        return train(trainer, run_args, name), trainer

    return run_all(run_once, args, run_args, edit)


def train(trainer: Trainer, run_args: RunArguments, name: str) -> RunReport:
    """Train, save the model, and measure it; `name` is that of the policy."""
    args: Any = trainer.args
    collator = trainer.data_collator if isinstance(trainer.data_collator, ToEditCollator) else None
    if collator is not None and collator.journal is not None:
        keep_dataset(trainer)
    started = time.perf_counter()
    result = trainer.train(resume_from_checkpoint=_checkpoint(args))
    loss = mean_loss(trainer)
    report = RunReport(policy=name, seed=args.seed, folder=str(args.output_dir))
    report.train = {
        "loss": result.training_loss if loss is None else loss,
        "steps": trainer.state.global_step,
        "epochs": float(trainer.state.epoch or 0.0),
        "seconds": time.perf_counter() - started,
    }
    if collator is not None:
        report.edit = collator.editor.stats.summary(over_ranks=True)
        if "raw" in report.edit and trainer.is_world_process_zero():
            changed, raw = report.edit["raw_changed"], report.edit["raw"]
            print(f"edited {changed:,} of {raw:,} raw tokens (sources with edit: false)")
    if trainer.is_fsdp_enabled:  # else `save_model` may write nothing
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(args.output_dir)
    report.held_out = _held_out(trainer)
    report.tasks = run_tasks(trainer, run_args)
    return report


def mean_loss(trainer: Trainer) -> float | None:
    """Mean over all logged steps, also those before a resume; None: nothing was logged."""
    logged = [(e["step"], e["loss"]) for e in trainer.state.log_history if "loss" in e]
    befores = [0, *(step for step, _ in logged)]
    total = sum(
        loss * (step - before) for before, (step, loss) in zip(befores, logged, strict=False)
    )
    return total / befores[-1] if logged else None


def _checkpoint(args: Any) -> str | None:
    wanted = str(args.resume_from_checkpoint)
    if wanted.lower() == "true":
        return last_checkpoint(args.output_dir)
    return None if wanted.lower() in ("none", "false") else wanted


def _held_out(trainer: Trainer) -> dict[str, float]:
    """Perplexity on each of the Trainer's evaluation sets; the trainee is the prior that scores."""
    sets = trainer.eval_dataset
    if sets is None:
        return {}
    scorer, names = _scorer(trainer), list(sets) if isinstance(sets, dict) else [None]
    found = {name or "eval": perplexity_of(trainer, scorer, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _scorer(trainer: Trainer) -> Prior:
    model: Any = trainer.model
    if not (is_zero3(model) or has_fsdp1(model)):
        return Prior(model, trainer.processing_class)
    # Outside of training their model can't make a pass; what was saved of it can.
    barrier()
    args = trainer.args
    if getattr(model, "peft_config", None):
        base = model.peft_config[model.active_adapter].base_model_name_or_path
        return Prior.from_pretrained(base, adapter=args.output_dir, device=args.device)
    return Prior.from_pretrained(str(args.output_dir), device=args.device)
