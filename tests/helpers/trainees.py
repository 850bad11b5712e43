"""Tiny data sets, trainers, and a record of what a model was given; for the integration tests."""

from __future__ import annotations

import copy
import functools
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from conftest import VOCAB_SIZE, make_llama
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from toedit_collate import EditPolicy, Prior, ToEditCallback, ToEditCollator, attach, edit_tokens

AGGRESSIVE = EditPolicy(threshold=0.05, exclude_original=True)
# Scores every token, and selects none: the tiny prior is never that sure.
IDLE = EditPolicy(threshold=1 - 1e-7)

compiles = pytest.mark.skipif(
    torch.__version__.startswith("2.6."),
    reason="torch 2.6 compiles models of transformers 5 to an empty output",
)

QUIET = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "logging_steps": 1,
    "num_train_epochs": 1,
    "learning_rate": 1e-3,
    "seed": 0,
    "dataloader_pin_memory": False,
    "bf16": False,  # which is the default of SFTConfig
}


def documents(num: int, seed: int = 0, *, shortest: int = 8, longest: int = 16) -> list[list[int]]:
    """Documents of different lengths; the first token, which is never edited, is their number."""
    return [list(text) for text in _documents(num, seed, shortest, longest)]


@functools.cache
def _documents(num: int, seed: int, shortest: int, longest: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = make_llama()
    texts = []
    for number in range(num):
        length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        ids = torch.randint(5, VOCAB_SIZE - 8, (length,), generator=generator)
        ids[0] = 40 + number
        # Some tokens that the prior finds likely, wherever it is not surprised by now.
        texts.append(_made_likely(model, ids.unsqueeze(0), generator)[0].tolist())
    return texts


def _made_likely(model, ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    with torch.no_grad():
        for t in range(1, ids.shape[1]):
            if torch.rand(1, generator=generator) < 0.5:
                logits = model(input_ids=ids[:, :t], use_cache=False).logits[:, -1]
                logits[:, :5] = logits[:, VOCAB_SIZE - 8 :] = -torch.inf
                ids[:, t] = logits.argmax(-1)
    return ids


def dataset(texts: list[list[int]], **columns) -> Dataset:
    return Dataset.from_dict({"input_ids": texts, **columns})


def make_prior(tokenizer=None) -> Prior:
    return Prior(make_llama(), tokenizer)


def make_trainee(seed: int = 1, **config):
    return make_llama(seed, sharpness=1.0, **config)


def move_adapters(model, seed: int = 0):
    """As training would: LoRA starts as nothing."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model


def logprobs(prior: Prior, ids: torch.Tensor) -> torch.Tensor:
    """Exact log P of all tokens but the first of each row."""
    return edit_tokens(prior, ids, return_logprob=True).logprob[:, 1:]


def lora(**settings) -> LoraConfig:
    return LoraConfig(
        **{
            "r": 4,
            "lora_alpha": 64,
            "target_modules": ["q_proj", "v_proj"],
            "task_type": "CAUSAL_LM",
            **settings,
        }
    )


@dataclass
class Given:
    """One forward pass of the recorded model."""

    training: bool
    rows: list[list[int]]
    labels: list[list[int]] | None
    positions: list[list[int]] | None = None


class Recorder:
    """Records what a model is given, without padding."""

    def __init__(self, model) -> None:
        self.given: list[Given] = []
        self.handle = model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module, args, kwargs) -> None:
        mask = kwargs.get("attention_mask")

        def without_padding(name):
            tensor = kwargs.get(name)
            if tensor is None or mask is None:
                return None if tensor is None else tensor.tolist()
            return [row[here.bool()].tolist() for row, here in zip(tensor, mask, strict=True)]

        rows, labels, positions = map(without_padding, ("input_ids", "labels", "position_ids"))
        self.given.append(Given(module.training, rows, labels, positions))

    def rows(self, *, training: bool) -> list[list[int]]:
        return [row for one in self.given if one.training == training for row in one.rows]

    def batches(self, *, training: bool) -> list[list[list[int]]]:
        return [one.rows for one in self.given if one.training == training]


def by_first_token(rows: list[list[int]]) -> dict[int, list[int]]:
    return {row[0]: row for row in rows}


@contextmanager
def counted_passes(prior: Prior):
    """A list that grows by the number of rows of each forward pass of the prior's trunk."""
    passes: list[int] = []
    trunk = prior.model.get_base_model().model if prior.is_shared else prior.model.model

    def count(module, args, kwargs) -> None:
        # A shared prior's trunk is the trainee's, which also trains and evaluates with it.
        layer = module.layers[0].self_attn.q_proj
        training = prior.is_shared and not layer.disable_adapters
        if not (training and layer.active_adapters == ["default"]):
            passes.append(len(kwargs["input_ids"]))

    handle = trunk.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


class Logs(TrainerCallback):
    """A tracker of experiments, as far as a Trainer knows: it gets what is logged."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self.logged.append(dict(logs))


def make_trainer(
    folder,
    tokenizer,
    *,
    kind: str = "Trainer",
    way: str | None = None,
    policy: EditPolicy = AGGRESSIVE,
    prior: Prior | None = None,
    model=None,
    train=None,
    base_collator=None,
    callbacks=(),
    trainer_class=None,
    trainer_arguments=None,
    refresh=None,
    journal=None,
    cache=None,
    **settings,
):
    """A trainer, and the collator that edits its batches.

    Args:
        kind: "Trainer" or "SFTTrainer".
        way: how editing is asked for: "collator" (as the data_collator), "callback" (alone),
            "both", "attach", or None: not at all.
        refresh: for the callback.
        journal: for the collator.
        cache: likewise.
        settings: for the training arguments.
    """
    arguments = {**QUIET, **settings}
    prior = prior or (make_prior(tokenizer) if way else None)
    if kind == "SFTTrainer":
        args = SFTConfig(str(folder), **{"gradient_checkpointing": False, **arguments})
        trainer_class = trainer_class or SFTTrainer
        base = base_collator
    else:
        args = TrainingArguments(str(folder), **arguments)
        trainer_class = trainer_class or Trainer
        base = base_collator or DataCollatorForLanguageModeling(tokenizer, mlm=False)
    collator = None
    callbacks = list(callbacks)
    if way in ("collator", "both", "callback"):
        collator = ToEditCollator(
            prior, policy, base_collator=None if way == "callback" else base, tokenizer=tokenizer,
            journal=journal, cache=cache,
        )  # fmt: skip
    if way in ("callback", "both"):
        callbacks.append(ToEditCallback(collator, refresh))
    trainer = trainer_class(
        model=model if model is not None else make_trainee(),
        args=args,
        data_collator=collator if way in ("collator", "both") else base,
        train_dataset=train if train is not None else dataset(documents(8)),
        processing_class=tokenizer,
        callbacks=callbacks,
        **(trainer_arguments or {}),
    )
    if way == "attach":
        collator = attach(trainer, prior, policy, refresh=refresh, journal=journal, cache=cache)
    return trainer, collator


def weights(model) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_same_weights(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def numbers_logged(trainer, prefix: str) -> list[dict[str, float]]:
    """What was logged under a prefix, without times."""
    return [
        {
            key: value
            for key, value in entry.items()
            if key.startswith(prefix) and not key.endswith(("runtime", "per_second"))
        }
        for entry in trainer.state.log_history
        if any(key.startswith(prefix) for key in entry)
    ]
