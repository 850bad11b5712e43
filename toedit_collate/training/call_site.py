"""Finds out who reads a batch: training or evaluation, in which epoch.

A trainer uses one collator for training and evaluation, and a batch does not know which it is for.
`model.training` does not help: the first training batch after an evaluation is fetched before
`model.train()`. But a batch is moved to its device inside the loop that asked for it, so that loop
is on the call stack.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_EVALUATION = {"evaluation_loop", "prediction_loop", "prediction_step", "evaluate", "predict"}
_TRAINING = {"_inner_training_loop", "get_batch_samples", "training_step", "train"}
_PINNING = "torch.utils.data._utils.pin_memory"
_LIGHTNING = ("lightning.pytorch.trainer.trainer", "pytorch_lightning.trainer.trainer")


class Purpose(enum.Enum):
    """What a batch is read for."""

    TRAINING = enum.auto()
    EVALUATION = enum.auto()
    UNKNOWN = enum.auto()  # edited like training: a user's own loop, for example


@dataclass(frozen=True)
class Origin:
    """What a collator knows about a batch when it makes it, in a worker or not."""

    purpose: Purpose = (
        Purpose.UNKNOWN
    )  # of all batches of a loader; UNKNOWN: the call stack decides
    pad_to_multiple_of: int | None = None  # for rows that shrink; None: they end with the longest
    # Documents that a worker aligned for a prior with another tokenizer.
    prepared: Any = field(default=None, repr=False, compare=False)


@dataclass
class CallSite:
    """Where a batch is being read."""

    # EVALUATION inside the evaluation or prediction of a `Trainer` of transformers or Lightning;
    # TRAINING inside the training of a `Trainer` without a marked loader.
    purpose: Purpose = Purpose.UNKNOWN
    skipping: bool = False  # accelerate's loader skips the batch, to resume training
    dispatching: bool = False  # accelerate's loader sends batches from rank 0 to all ranks
    pinning: bool = False  # PyTorch pins the batch's memory, perhaps in a thread of its own
    epoch: int | None = None  # as the Trainer or accelerate's loader counts it
    trainer: Any = None  # the `Trainer` of transformers that trains on the batch


def inspect_call_stack() -> CallSite:
    """Search the call stack, from the innermost call outwards, for the loop of a Trainer."""
    # A class that was never imported can't be on the stack, so nothing is imported here.
    trainer_class = _imported("transformers.trainer", "Trainer")
    loader_class = _imported("accelerate.data_loader", "DataLoaderShard")
    dispatcher_class = _imported("accelerate.data_loader", "DataLoaderDispatcher")
    lightning_classes = tuple(c for name in _LIGHTNING for c in _imported(name, "Trainer"))

    site, loader = CallSite(), None
    for frame in _frames():
        name = frame.f_code.co_name
        owner = frame.f_locals.get("self")
        if name == "pin_memory" and frame.f_globals.get("__name__") == _PINNING:
            site.pinning = True
        if loader is None and name in ("__iter__", "_fetch_batches"):
            if isinstance(owner, loader_class + dispatcher_class):
                loader, site.epoch = owner, owner.iteration
                site.dispatching = isinstance(owner, dispatcher_class)
                site.skipping = _batch_number(frame) < owner.skip_batches
        elif name in _EVALUATION and isinstance(owner, trainer_class):
            site.purpose = Purpose.EVALUATION
            break
        elif name in _TRAINING and isinstance(owner, trainer_class):
            if not _feeds_training(loader, owner, loader_class + dispatcher_class):
                site.purpose = Purpose.EVALUATION
                break
            site.trainer = owner
            if not _has_marked_loader(owner):
                site.purpose = Purpose.TRAINING
            break
        elif lightning_classes and isinstance(owner, lightning_classes):
            if not owner.training:
                site.purpose = Purpose.EVALUATION
            site.epoch = owner.current_epoch
            break
    return site


def inside_data_loader() -> bool:
    """Whether a DataLoader of PyTorch is fetching a batch in this process."""
    fetchers = _imported("torch.utils.data._utils.fetch", "_BaseDatasetFetcher")
    return calling_instance(fetchers) is not None


def calling_instance(of_class: type | tuple[type, ...]) -> Any:
    """The innermost instance of a class with a method on the call stack; or None."""
    for frame in _frames():
        owner = frame.f_locals.get("self")
        if isinstance(owner, of_class):
            return owner
    return None


def argument_of_caller(function: str, argument: str) -> Any:
    """The value of an argument of the innermost caller with that name; or None."""
    for frame in _frames():
        if frame.f_code.co_name == function:
            return frame.f_locals.get(argument)
    return None


def _frames() -> Iterator[Any]:
    """The frames of the call stack, from the innermost call outwards."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _imported(module: str, name: str) -> tuple[Any, ...]:
    """A class as a tuple of one, or () if its module was not imported."""
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)


def _batch_number(frame: Any) -> int:
    """The number, in its epoch, of the batch that accelerate's loader is about to yield."""
    if frame.f_code.co_name == "__iter__":
        return frame.f_locals.get("batch_index", 0)
    # The dispatching loader fetches one batch ahead of the one that it counts.
    return frame.f_back.f_locals.get("batch_index", -1) + 1


def _has_marked_loader(trainer: Any) -> bool:
    """Whether the collator of a Trainer's training loader is marked for training."""
    loader = trainer.callback_handler.train_dataloader
    collate_fn = getattr(getattr(loader, "base_dataloader", loader), "collate_fn", None)
    while collate_fn is not None:
        if getattr(collate_fn, "purpose", None) is Purpose.TRAINING:
            return True
        collate_fn = getattr(collate_fn, "data_collator", None)
    return False


def _feeds_training(loader: Any, trainer: Any, accelerated: tuple[Any, ...]) -> bool:
    """Whether a batch that is read during training comes from the training loader.

    A callback may read another `loader`, for evaluation. When a run resumes, accelerate makes a new
    loader, but with the same dataset.
    """
    handler = trainer.callback_handler
    feeding = handler.train_dataloader
    if loader is None:
        # A loader that moves batches to their device reads them itself.
        moves = isinstance(feeding, accelerated) and getattr(feeding, "device", None) is not None
        return not moves
    evaluation = [*getattr(trainer, "_eval_dataloaders", {}).values(), handler.eval_dataloader]
    if any(loader is one for one in evaluation):
        return False
    dataset = getattr(feeding, "dataset", None)
    return dataset is None or loader.dataset is dataset
