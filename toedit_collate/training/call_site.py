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
        trainer: the `Trainer` that trains on the batch; None: no `Trainer` does.
    """

    evaluating: bool = False
    skipping: bool = False
    dispatching: bool = False
    epoch: int | None = None
    trainer: Any = None


def look_around() -> Surroundings:
    """Look up the call stack, from the innermost call outwards, until a loop of a Trainer."""
    # What was never imported can't be on the stack; so nothing is imported for this either.
    trainer_class = getattr(sys.modules.get("transformers.trainer"), "Trainer", ())
    loaders = sys.modules.get("accelerate.data_loader")
    loader_class = getattr(loaders, "DataLoaderShard", ())
    dispatcher_class = getattr(loaders, "DataLoaderDispatcher", ())

    loader: Any = None
    trainer: Any = None
    skipping = dispatching = evaluating = False
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_name
        if loader is None and name in ("__iter__", "_fetch_batches"):
            owner = frame.f_locals.get("self")
            if isinstance(owner, (loader_class, dispatcher_class)):
                loader = owner
                dispatching = isinstance(owner, dispatcher_class)
                skipping = _batch_number(frame) < owner.skip_batches
        elif name in _EVALUATION and isinstance(frame.f_locals.get("self"), trainer_class):
            evaluating = True
            break
        elif name in _TRAINING and isinstance(frame.f_locals.get("self"), trainer_class):
            trainer = frame.f_locals["self"]
            evaluating = loader is not None and not _is_for_training(loader, trainer)
            break
        frame = frame.f_back  # type: ignore[assignment]
    return Surroundings(
        evaluating=evaluating,
        skipping=skipping,
        dispatching=dispatching,
        epoch=None if loader is None else loader.iteration,
        trainer=None if evaluating else trainer,
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


def argument_of_caller(function: str, argument: str) -> Any:
    """What the innermost caller of that name was given for an argument; or None."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == function:
            return frame.f_locals.get(argument)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _batch_number(frame: Any) -> int:
    """The number in its epoch of the batch that a loader of accelerate has in hand."""
    if frame.f_code.co_name == "__iter__":
        return frame.f_locals.get("batch_index", 0)
    # The dispatching loader fetches one batch ahead of the one that it counts.
    return frame.f_back.f_locals.get("batch_index", -1) + 1


def _is_for_training(loader: Any, trainer: Any) -> bool:
    """Whether a loader that is read in training feeds it; a callback may read one for evaluation.

    To resume, accelerate makes a loader of its own; but it has the same dataset.
    """
    handler = trainer.callback_handler
    evaluation = [*getattr(trainer, "_eval_dataloaders", {}).values(), handler.eval_dataloader]
    if any(loader is one for one in evaluation):
        return False
    dataset = getattr(handler.train_dataloader, "dataset", None)
    return dataset is None or loader.dataset is dataset
