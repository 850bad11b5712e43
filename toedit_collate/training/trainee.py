"""Checks that a trainer's batches can be edited, and that a prior fits its model."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from torch import nn
from transformers import AutoTokenizer
from transformers.utils import cached_file

from ..prior.base import BasePrior
from ..prior.families import unwrap_model

# Preference, reward, reinforcement and distillation trainers by name, since subclasses and copies
# of TRL's trainers are in many packages.
_OTHER_TASKS = re.compile(
    r"(DPO|KTO|Reward|ORPO|CPO|GRPO|RLOO|PPO|GKD|NashMD|XPO|BCO|PRM|SDFT|SDPO|GOLD|MiniLLM|"
    r"Distillation|Pairwise|Preference)\w*Trainer$",
    re.IGNORECASE,
)
_DISTILLING = re.compile(r"KD\w*Trainer$")  # case-sensitive, unlike in WorkdayTrainer
# Models of transformers and PEFT that don't learn to predict the next token.
_OTHER_MODELS = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|MaskedLM|"
    r"NextSentencePrediction|PreTraining|FeatureExtraction)$"
)
# Functions of these libraries use only the tokenizers that they are given.
_LIBRARIES = {"accelerate", "datasets", "numpy", "peft", "torch", "transformers", "trl"}
_CALL = "__call__"
# Trainers of TRL that train on the tokens of the batch, and their base.
_OF_TRL = ("SFTTrainer", "IterativeSFTTrainer", "BaseTrainer", "_BaseTrainer")


def check_trainer(trainer: Any) -> None:
    """Raise for trainers that learn from something else than the next token of their batches.

    Raises:
        TypeError: it is not a trainer.
        ValueError: a preference, reward, reinforcement or distillation trainer; names the class.
    """
    for kind in type(trainer).__mro__:
        of_trl = kind.__module__.split(".")[0] == "trl" and kind.__name__.endswith("Trainer")
        named = _OTHER_TASKS.search(kind.__name__) or _DISTILLING.search(kind.__name__)
        if named or (of_trl and kind.__name__ not in _OF_TRL):
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
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for kind in (type(model), type(base)):
        if _OTHER_MODELS.search(kind.__name__):
            raise ValueError(
                f"the trainee is a {kind.__name__}, which does not learn to predict the next "
                "token; token editing is for causal language models"
            )
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"the trainee is an encoder-decoder model ({type(model).__name__}), whose decoder "
            "reads tokens from before the edit; only decoder-only language models are supported"
        )
    known, drawable = _num_embeddings(model), prior.vocab_size
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
    if is_theirs and getattr(trainer, "compute_loss_func", None) is None:
        raise ValueError(
            f"the base collator made no labels (only {sorted(batch)}), so the model can't return a "
            "loss; pass base_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False) to "
            "learn from every token, or give the rows labels and pass "
            "base_collator=DataCollatorForSeq2Seq(tokenizer)"
        )


def find_tokenizer(model: Any, collators: Iterable[Any]) -> Any:
    """The trainee's tokenizer, from collators or the model's local files; None if there is none."""
    known = next((t for t in map(tokenizer_of, collators) if t is not None), None)
    if known is not None:
        return known
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not name or not _has_tokenizer(name):
        return None
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except Exception:  # damaged files of any kind
        return None


def _has_tokenizer(name: str) -> bool:
    """Whether a folder or the hub's cache has a tokenizer (transformers makes an empty one)."""
    for file in ("tokenizer.json", "tokenizer.model", "vocab.json"):
        with contextlib.suppress(OSError):
            if cached_file(name, file, local_files_only=True):
                return True
    return False


def tokenizer_of(collator: Any) -> Any:
    """The tokenizer of a collator or of a collator inside it; or None."""
    while collator is not None:
        tokenizer = text_tokenizer(getattr(collator, "tokenizer", None))
        if hasattr(tokenizer, "get_vocab"):
            return tokenizer
        inside = ("data_collator", "base_collator")
        collator = next((c for n in inside if (c := getattr(collator, n, None))), None)
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


def _num_embeddings(model: Any) -> int | None:
    try:
        number = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):
        number = None
    if isinstance(number, int) and number > 0:  # ZeRO-3 leaves 0 rows
        return number
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "vocab_size", None)
