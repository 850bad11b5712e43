"""One run of a Trainer: training, what is measured after it, and what is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import Trainer, TrainingArguments, set_seed

from toedit_collate.config.arguments import EditArguments, RunArguments
from toedit_collate.config.card import add_to_card
from toedit_collate.config.models import check_prior
from toedit_collate.config.run_report import RunReport
from toedit_collate.distributed import barrier
from toedit_collate.policy import EditPolicy
from toedit_collate.prior.prior import Prior
from toedit_collate.prior.sharding import has_fsdp1, is_zero3
from toedit_collate.training.checkpoints import last_checkpoint
from toedit_collate.training.collator import ToEditCollator
from toedit_collate.training.generations import mean_loss
from toedit_collate.training.perplexity import perplexity_of

from .finish import write_samples
from .folder import keep_dataset
from .samples import Samples, prior_for_samples
from .tasks import check_tasks, run_tasks
from .variants import run_all

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
    """
    check_tasks(run_args)
    check_prior(edit)

    def run_once(own: Any, name: str, policy: EditPolicy | None) -> tuple[RunReport, Trainer]:
        set_seed(own.seed)
        trainer = make_trainer(own, policy)
        return _train(trainer, run_args, name, policy), trainer

    return run_all(run_once, args, run_args, edit)


def _train(
    trainer: Trainer, run_args: RunArguments, name: str, policy: EditPolicy | None
) -> RunReport:
    args = trainer.args
    collator = trainer.data_collator if isinstance(trainer.data_collator, ToEditCollator) else None
    samples = Samples(run_args.num_samples, trainer.processing_class, prior_for_samples(collator))
    if collator is not None and collator.on_edit is None:
        collator.on_edit = samples.add
    checkpoint = _checkpoint(args)
    report = RunReport(policy=name, seed=args.seed, folder=str(args.output_dir))
    add_to_card(trainer, name, policy, report, is_resumed=checkpoint is not None)
    if collator is not None and collator.journal is not None:
        keep_dataset(trainer, str(args.output_dir))
    started = time.perf_counter()
    result = trainer.train(resume_from_checkpoint=checkpoint)
    loss = mean_loss(trainer)
    report.train = {
        "loss": result.training_loss if loss is None else loss,
        "steps": trainer.state.global_step,
        "epochs": float(trainer.state.epoch or 0.0),
        "seconds": time.perf_counter() - started,
    }
    if collator is not None:
        report.edit = collator.editor.stats.summary(over_ranks=True)
    trainer.save_model(args.output_dir)
    report.held_out = _held_out(trainer)
    report.tasks = run_tasks(trainer, run_args)
    write_samples(args, samples)
    return report


def _checkpoint(args: Any) -> str | None:
    wanted = args.resume_from_checkpoint
    if wanted in (None, False, "false", "False"):
        return None
    if wanted in (True, "true", "True"):
        return last_checkpoint(args.output_dir)
    return str(wanted)


def _held_out(trainer: Trainer) -> dict[str, float]:
    """Perplexity on each of the Trainer's evaluation sets; the trainee is the prior that scores."""
    sets = trainer.eval_dataset
    if sets is None:
        return {}
    try:
        scorer = _scorer(trainer)
    except OSError as error:  # training is over: that must not be lost
        if trainer.args.should_save:
            print(
                f"held_out was not measured: the model that was saved can't be loaded ({error}); "
                "with DeepSpeed ZeRO-3 set zero3_save_16bit_model: true in accelerate's config "
                "(stage3_gather_16bit_weights_on_model_save in DeepSpeed's)",
                flush=True,
            )
        return {}
    names = list(sets) if isinstance(sets, dict) else [None]
    found = {name or "eval": perplexity_of(trainer, scorer, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _scorer(trainer: Trainer) -> Prior:
    model: Any = trainer.model
    if not (is_zero3(model) or has_fsdp1(model)):
        return Prior(model, trainer.processing_class)
    # A pass of their model outside of training is not possible; one of what was saved is.
    barrier()
    args = trainer.args
    if getattr(model, "peft_config", None):
        base = model.peft_config[model.active_adapter].base_model_name_or_path
        return Prior.from_pretrained(base, adapter=args.output_dir, device=args.device)
    return Prior.from_pretrained(str(args.output_dir), device=args.device)
