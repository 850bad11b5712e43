"""Checks that a trainer's batches can be edited, and that a prior fits its model."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from torch import nn
from transformers import AutoTokenizer
from transformers.utils import cached_file

from ..prior.base import BasePrior
from ..prior.families import unwrap_model

# Functions of these libraries use only the tokenizers that they are given.
_LIBRARIES = {"accelerate", "datasets", "numpy", "peft", "torch", "transformers", "trl"}
_CALL = "__call__"
# Trainers of TRL that train on the tokens of the batch, and their base.
_OF_TRL = ("SFTTrainer", "IterativeSFTTrainer", "BaseTrainer", "_BaseTrainer")


def check_trainer(trainer: Any) -> None:
    """Raise a ValueError for a trainer that learns from something else than the next token.

    `check_keys` refuses the batches of such trainers outside of TRL.
    """
    for kind in type(trainer).__mro__:
        of_trl = kind.__module__.split(".")[0] == "trl" and kind.__name__.endswith("Trainer")
        if of_trl and kind.__name__ not in _OF_TRL:
            raise ValueError(
                f"{kind.__name__} learns from preferences, rewards, generations or a teacher, "
                "which do not fit edited tokens; token editing is for supervised fine-tuning and "
                "pretraining: use SFTTrainer or Trainer"
            )
    if not (hasattr(trainer, "data_collator") or hasattr(trainer, "get_train_dataloader")):
        raise TypeError(
            f"trainer must be a Trainer or SFTTrainer, got {type(trainer).__name__}; write "
            "attach(trainer, prior, policy)"
        )


def check_trainee(model: Any, prior: BasePrior) -> None:
    """Raise a ValueError unless a trainee can be trained on the tokens that the prior draws."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"the trainee is an encoder-decoder model ({type(model).__name__}), whose decoder "
            "reads tokens from before the edit; only decoder-only language models are supported"
        )
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    known, drawable = getattr(text, "vocab_size", None), prior.vocab_size
    if prior.tokenizer is not None:
        drawable = min(drawable, 1 + max(prior.tokenizer.get_vocab().values(), default=-1))
    if known is not None and known < drawable:
        raise ValueError(
            f"the trainee has {known} token ids, but the prior draws among {drawable}, so a batch "
            "could hold ids without an embedding; use a prior with the trainee's tokenizer, and "
            "pass tokenizer="
        )


def check_needs_no_labels(trainer: Any, batch: Mapping[str, Any]) -> None:
    """Raise a ValueError if a Trainer can't compute a loss without labels.

    Trainers and models outside of transformers and TRL may compute a loss of their own.
    """
    own_loss = [type(trainer).compute_loss, type(unwrap_model(trainer.model))]
    is_theirs = all(kind.__module__.split(".")[0] in ("transformers", "trl") for kind in own_loss)
    if is_theirs and trainer.compute_loss_func is None:
        raise ValueError(
            f"the base collator made no labels (only {sorted(batch)}), so there is no loss; pass "
            "base_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False) to learn from "
            "every token, or give the rows labels"
        )


def find_tokenizer(model: Any, collators: Iterable[Any]) -> Any:
    """The trainee's tokenizer, from collators or the model's local files; None if there is none."""
    for collator in collators:
        while collator is not None:
            tokenizer = text_tokenizer(getattr(collator, "tokenizer", None))
            if hasattr(tokenizer, "get_vocab"):
                return tokenizer
            inner = getattr(collator, "data_collator", None)
            collator = inner or getattr(collator, "base_collator", None)
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    try:
        # Without this file, transformers makes an empty tokenizer.
        cached_file(name, "tokenizer.json", local_files_only=True)
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except Exception:  # damaged files of any kind
        return None


def tokenizers_in(value: Any, depth: int = 4) -> Iterator[Any]:
    """The tokenizers that a collator refers to: in attributes, arguments, a closure or globals."""
    if isinstance(value, (type, ModuleType, nn.Module)):
        return
    if hasattr(value, "get_vocab") and hasattr(value, "all_special_ids"):
        yield value
        return
    origin = str(getattr(value, "__module__", "")).split(".")[0]
    inside: Iterable[Any] = ()
    if isinstance(value, functools.partial):
        inside = (value.func, *value.args, *value.keywords.values())
    elif inspect.ismethod(value):
        inside = (value.__self__, value.__func__)
    elif inspect.isfunction(value) and origin not in sys.stdlib_module_names | _LIBRARIES:
        with contextlib.suppress(ValueError):  # a variable of the closure has no value yet
            used = inspect.getclosurevars(value)
            inside = (*used.nonlocals.values(), *used.globals.values())
    elif not inspect.isfunction(value):
        inside = (*getattr(value, "__dict__", {}).values(), getattr(type(value), _CALL, None))
    for one in inside if depth else ():
        yield from tokenizers_in(one, depth - 1)


def text_tokenizer(processing_class: Any) -> Any:
    """The tokenizer inside a processor for several modalities, or the argument itself."""
    tokenizer = getattr(processing_class, "tokenizer", None)
    return tokenizer if tokenizer is not None else processing_class
