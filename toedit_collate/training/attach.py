"""attach(): edit the training batches of a Trainer that exists already."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from ..policy import EditPolicy
from ..prior.base import BasePrior
from .callback import ToEditCallback
from .collator import ToEditCollator
from .drawn_loss import install_drawn_loss
from .trainee import check_trainee, check_trainer, text_tokenizer
from .training_loader import edit_training_loaders_of


def attach(
    trainer: Trainer, prior: BasePrior, policy: EditPolicy | None = None, **kwargs: Any
) -> ToEditCollator:
    """Edit the training batches of a Trainer that exists already.

    This is the way in for `SFTTrainer` with packing or padding-free batches, which accepts no other
    collator: its own stays, inside ours. Only the Trainer's training loader is edited; any other
    loader that uses `trainer.data_collator` is not.

    Args:
        trainer: a `Trainer`, `SFTTrainer` or another subclass, before `train()`.
        prior: scores the tokens.
        policy: which tokens are edited, and how; default: the paper's.
        kwargs: for `ToEditCollator`, and `refresh` for `ToEditCallback`.

    Returns:
        The collator, which is now `trainer.data_collator`. Make another one for a loop of your own.

    Raises:
        ValueError: the trainer's batches are edited already; it learns from preferences, rewards
            or a teacher; or the prior does not fit its model.
    """
    check_trainer(trainer)
    if isinstance(trainer.data_collator, ToEditCollator):
        raise ValueError("the trainer's data_collator is a ToEditCollator already; attach once")
    refresh = kwargs.pop("refresh", None)
    kwargs.setdefault("tokenizer", text_tokenizer(getattr(trainer, "processing_class", None)))
    kwargs.setdefault("base_collator", trainer.data_collator)
    collator = ToEditCollator(prior, policy, **kwargs)
    if trainer.model is not None:
        check_trainee(trainer.model, prior)
        if collator.policy.num_draws > 1:
            install_drawn_loss(trainer, trainer.model)
    callback = ToEditCallback(collator, refresh)
    trainer.data_collator = collator  # type: ignore[assignment]
    edit_training_loaders_of(trainer, collator)
    # Otherwise the Trainer drops the column `edit`, and rows with edit=False would be edited.
    columns: Any = trainer
    columns._set_signature_columns_if_needed()
    columns._signature_columns = [*columns._signature_columns, "edit"]
    trainer.add_callback(callback)
    return collator
