"""Who is reading a batch: training or evaluation, which epoch, a batch that is to be skipped.

A trainer uses one collator for training and evaluation, and a batch is not told which it is for.
Nor can `model.training` tell: the first training batch after an evaluation is fetched before
`model.train()`. But a batch is moved to its device inside the loop that asked for it, so the loop
stands on the call stack.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_EVALUATION = {"evaluation_loop", "prediction_loop", "prediction_step", "evaluate", "predict"}
_TRAINING = {"_inner_training_loop", "get_batch_samples", "training_step", "train"}
_PINNING = "torch.utils.data._utils.pin_memory"
_LIGHTNING = ("lightning.pytorch.trainer.trainer", "pytorch_lightning.trainer.trainer")


@dataclass(frozen=True)
class Surroundings:
    """Where a batch is being read.

    Attributes:
        evaluating: inside the evaluation or prediction of a `Trainer`, of transformers or
            Lightning.
        skipping: by a loader of accelerate that passes over batches to resume training.
        dispatching: by a loader of accelerate that sends batches from rank 0 to all ranks.
        pinning: by the function of PyTorch that pins memory, perhaps in a thread of its own.
        epoch: number of the epoch, as the Trainer or the loader of accelerate counts it; None: not
            known.
        trainer: the `Trainer` of transformers that trains on the batch; None: none does.
        in_unknown_training: such a `Trainer` does, and its training loader was not made known (by
            `attach` or `ToEditCallback`).
    """

    evaluating: bool = False
    skipping: bool = False
    dispatching: bool = False
    pinning: bool = False
    epoch: int | None = None
    trainer: Any = None
    in_unknown_training: bool = False


def look_around() -> Surroundings:
    """Look up the call stack, from the innermost call outwards, until a loop of a Trainer."""
    # What was never imported can't be on the stack; so nothing is imported for this either.
    trainer_class = _imported("transformers.trainer", "Trainer")
    loader_class = _imported("accelerate.data_loader", "DataLoaderShard")
    dispatcher_class = _imported("accelerate.data_loader", "DataLoaderDispatcher")
    lightning_classes = tuple(c for name in _LIGHTNING for c in _imported(name, "Trainer"))

    loader: Any = None
    trainer: Any = None
    epoch: int | None = None
    skipping = dispatching = pinning = evaluating = False
    for frame in _frames():
        name = frame.f_code.co_name
        owner = frame.f_locals.get("self")
        if name == "pin_memory":
            pinning = pinning or frame.f_globals.get("__name__") == _PINNING
        if loader is None and name in ("__iter__", "_fetch_batches"):
            if isinstance(owner, loader_class + dispatcher_class):
                loader, epoch = owner, owner.iteration
                dispatching = isinstance(owner, dispatcher_class)
                skipping = _batch_number(frame) < owner.skip_batches
        elif name in _EVALUATION and isinstance(owner, trainer_class):
            evaluating = True
            break
        elif name in _TRAINING and isinstance(owner, trainer_class):
            trainer = owner
            accelerated = loader_class + dispatcher_class
            evaluating = not _is_for_training(loader, trainer, accelerated)
            break
        elif lightning_classes and isinstance(owner, lightning_classes):
            evaluating = not owner.training
            epoch = owner.current_epoch
            break
    return Surroundings(
        evaluating=evaluating,
        skipping=skipping,
        dispatching=dispatching,
        pinning=pinning,
        epoch=epoch,
        trainer=None if evaluating else trainer,
        in_unknown_training=not evaluating and trainer is not None and not _is_known(trainer),
    )


def inside_data_loader() -> bool:
    """Whether a DataLoader of PyTorch, in this process, is fetching a batch."""
    fetchers = _imported("torch.utils.data._utils.fetch", "_BaseDatasetFetcher")
    return calling_instance(fetchers) is not None


def calling_instance(of_class: type | tuple[type, ...]) -> Any:
    """The innermost instance of a class, one of whose methods is on the call stack; or None."""
    for frame in _frames():
        owner = frame.f_locals.get("self")
        if isinstance(owner, of_class):
            return owner
    return None


def argument_of_caller(function: str, argument: str) -> Any:
    """What the innermost caller of that name was given for an argument; or None."""
    for frame in _frames():
        if frame.f_code.co_name == function:
            return frame.f_locals.get(argument)
    return None


def _frames() -> Iterator[Any]:
    """The call stack of whoever asks, from the innermost call outwards."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _imported(module: str, name: str) -> tuple[Any, ...]:
    """A class, if its module was imported: one of them, or none."""
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)


def _batch_number(frame: Any) -> int:
    """The number in its epoch of the batch that a loader of accelerate has in hand."""
    if frame.f_code.co_name == "__iter__":
        return frame.f_locals.get("batch_index", 0)
    # The dispatching loader fetches one batch ahead of the one that it counts.
    return frame.f_back.f_locals.get("batch_index", -1) + 1


def _is_known(trainer: Any) -> bool:
    """Whether the loader with which a Trainer trains has a collator that is for training."""
    loader = trainer.callback_handler.train_dataloader
    collate_fn = getattr(getattr(loader, "base_dataloader", loader), "collate_fn", None)
    while collate_fn is not None:
        if getattr(collate_fn, "trains", None):
            return True
        collate_fn = getattr(collate_fn, "data_collator", None)
    return False


def _is_for_training(loader: Any, trainer: Any, accelerated: tuple[Any, ...]) -> bool:
    """Whether what is read in training comes from the loader that feeds it.

    A callback may read another one, for evaluation. To resume, accelerate makes a loader of its
    own; but it has the same dataset.

    Args:
        loader: of accelerate, that is giving a batch; None: none is.
        trainer: that trains.
        accelerated: the classes of accelerate's loaders.
    """
    handler = trainer.callback_handler
    feeding = handler.train_dataloader
    if loader is None:
        # Those move a batch to its device, so it is read, before they give it.
        moves = isinstance(feeding, accelerated) and getattr(feeding, "device", None) is not None
        return not moves
    evaluation = [*getattr(trainer, "_eval_dataloaders", {}).values(), handler.eval_dataloader]
    if any(loader is one for one in evaluation):
        return False
    dataset = getattr(feeding, "dataset", None)
    return dataset is None or loader.dataset is dataset
