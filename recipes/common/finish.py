"""What is left to do with a Trainer once its run is over."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from toedit_collate.config.arguments import RunArguments
from toedit_collate.data.files import write_text

from .samples import Samples


def write_samples(args: Any, samples: Samples) -> None:
    """Write `samples.md` and, where there are samples, `samples.html`, on one process."""
    if args.should_save:
        folder = Path(args.output_dir)
        write_text(folder / "samples.md", samples.as_text())
        page = samples.as_page()
        if page is not None:
            write_text(folder / "samples.html", page)


def finish(trainer: Any, run_args: RunArguments) -> None:
    """Write the model card, push if that is wanted, and let the memory of the run go."""
    dataset = run_args.given.get("dataset_name")
    if trainer.args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset)
    elif hasattr(trainer, "create_model_card"):
        trainer.create_model_card(dataset_name=dataset)
    _end_trackers(trainer)
    trainer.model = trainer.model_wrapped = trainer.optimizer = None
    trainer.accelerator.free_memory()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _end_trackers(trainer: Any) -> None:
    # wandb and trackio keep one run for each process: the next run of a comparison needs its own.
    for tracker in ("wandb", "trackio"):
        if tracker in trainer.args.report_to and trainer.is_world_process_zero():
            __import__(tracker).finish()
