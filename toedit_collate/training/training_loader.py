"""Marks the loader with which a Trainer trains: its batches are edited, and no others."""

from __future__ import annotations

import copy
from typing import Any

from torch.utils.data import DataLoader

from .call_site import Purpose
from .collator import ToEditCollator
from .editor import DISPATCHING

NOT_EDITED = (
    "no batch of the first training step came from a ToEditCollator, so nothing was edited: the "
    "Trainer's training loader has no collate_fn that ToEditCallback could use; let "
    "get_train_dataloader return a DataLoader (of PyTorch or accelerate), or make its batches with "
    "trainer.data_collator after attach(trainer, prior, policy)"
)


def edit_training_loader(loader: Any, collator: ToEditCollator) -> ToEditCollator:
    """Let all batches of a loader be edited, and no batches of others with the same collator.

    Puts `collator` around the loader's `collate_fn`, unless that is a `ToEditCollator` already (or
    one inside transformers' RemoveColumnsCollator). Returns the loader's collator.

    Raises:
        ValueError: the loader has another `ToEditCollator`, or it dispatches batches from rank 0.
    """
    loader = _find_loader(loader)
    if loader is None:  # a list, say, whose batches may come from the collator
        return collator
    present = loader.collate_fn
    while present is not None and not isinstance(present, ToEditCollator):
        present = getattr(present, "data_collator", None)
    if present is None:
        loader.collate_fn = collator.around(loader.collate_fn, Purpose.TRAINING)
        return loader.collate_fn
    if present.key != collator.key:
        raise ValueError(
            "the Trainer's data_collator is a ToEditCollator, and ToEditCallback has another "
            "one; pass the same to both, or the callback alone"
        )
    if present.purpose is Purpose.TRAINING:
        return present
    marked = present.around(present.base_collator, Purpose.TRAINING)
    present.purpose = Purpose.EVALUATION
    loader.collate_fn = _replaced(loader.collate_fn, marked)
    return marked


def edit_training_loaders_of(trainer: Any, collator: ToEditCollator) -> None:
    """Let each training loader that a Trainer makes from now on be edited, and no other loader."""
    if isinstance(trainer.data_collator, ToEditCollator):
        if trainer.data_collator.key != collator.key:
            return  # an error when training begins
        trainer.data_collator.purpose = Purpose.EVALUATION
    make = trainer.get_train_dataloader

    def get_train_dataloader(*args: Any, **kwargs: Any) -> Any:
        loader = make(*args, **kwargs)
        edit_training_loader(loader, collator)
        return loader

    trainer.get_train_dataloader = get_train_dataloader


def _replaced(collate_fn: Any, marked: ToEditCollator) -> Any:
    """A collate_fn with another ToEditCollator inside; the collators around it are copied."""
    if isinstance(collate_fn, ToEditCollator):
        return marked
    outer = copy.copy(collate_fn)
    outer.data_collator = _replaced(collate_fn.data_collator, marked)
    return outer


def _find_loader(loader: Any) -> Any:
    """The loader that has the `collate_fn`, inside accelerate's and users' wrappers; or None."""
    from accelerate.data_loader import DataLoaderDispatcher

    if isinstance(loader, DataLoaderDispatcher) and loader.state.num_processes > 1:
        raise ValueError(DISPATCHING)
    attributes = getattr(loader, "__dict__", {})
    if "collate_fn" in attributes:
        return loader
    inside = [one for one in attributes.values() if isinstance(one, DataLoader)]
    return _find_loader(inside[0]) if len(inside) == 1 else None
