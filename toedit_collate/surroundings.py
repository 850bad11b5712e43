"""Who is reading a batch: training or evaluation, which epoch, a batch that is to be skipped.

`Trainer` uses one collator for training and evaluation, and a batch is not told which it is for.
Nor can `model.training` tell: the first training batch after an evaluation is fetched before
`model.train()`. But a batch is moved to its device inside the loop that asked for it, so the loop
stands on the call stack.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

_EVALUATION = {"evaluation_loop", "prediction_loop", "prediction_step", "evaluate", "predict"}
_TRAINING = {"_inner_training_loop", "get_batch_samples", "training_step", "train"}


@dataclass(frozen=True)
class Surroundings:
    """Where a batch is being read.

    Attributes:
        evaluating: inside the evaluation or prediction of a `Trainer`.
        skipping: by a loader of accelerate that passes over batches to resume training.
        dispatching: by a loader of accelerate that sends batches from rank 0 to all ranks.
        epoch: number of the epoch, as the loader of accelerate counts it; None: not known.
    """

    evaluating: bool = False
    skipping: bool = False
    dispatching: bool = False
    epoch: int | None = None


def look_around() -> Surroundings:
    """Look up the call stack, from the innermost call outwards, until a loop of a Trainer."""
    # What was never imported can't be on the stack; so nothing is imported for this either.
    trainer_class = getattr(sys.modules.get("transformers.trainer"), "Trainer", ())
    loaders = sys.modules.get("accelerate.data_loader")
    loader_class = getattr(loaders, "DataLoaderShard", ())
    dispatcher_class = getattr(loaders, "DataLoaderDispatcher", ())

    loader: Any = None
    epoch: int | None = None
    skipping = dispatching = evaluating = False
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_name
        if loader is None and name in ("__iter__", "_fetch_batches"):
            owner = frame.f_locals.get("self")
            if isinstance(owner, (loader_class, dispatcher_class)):
                loader, epoch = owner, owner.iteration
                dispatching = isinstance(owner, dispatcher_class)
                # The batch that is moved to the device is number `batch_index`.
                skipping = frame.f_locals.get("batch_index", 0) < owner.skip_batches
        elif name in _EVALUATION and isinstance(frame.f_locals.get("self"), trainer_class):
            evaluating = True
            break
        elif name in _TRAINING and isinstance(frame.f_locals.get("self"), trainer_class):
            evaluating = loader is not None and _is_for_evaluation(loader, frame.f_locals["self"])
            break
        frame = frame.f_back  # type: ignore[assignment]
    return Surroundings(
        evaluating=evaluating, skipping=skipping, dispatching=dispatching, epoch=epoch
    )


def calling_instance(of_class: type) -> Any:
    """The innermost instance of a class, one of whose methods is on the call stack; or None."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, of_class):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _is_for_evaluation(loader: Any, trainer: Any) -> bool:
    """Whether a loader that is read in training, by a callback perhaps, is one for evaluation."""
    known = list(getattr(trainer, "_eval_dataloaders", {}).values())
    known.append(trainer.callback_handler.eval_dataloader)
    return any(loader is one for one in known)
