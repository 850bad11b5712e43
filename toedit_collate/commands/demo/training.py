"""Trains a smaller model with or without the edits of a prior."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Iterable
from typing import Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ...data import Example
from ...data.progress import progress_bar
from ...editing.with_cache import check_can_be_cached
from ...policy import EditPolicy
from ...prior.prior import Prior
from ...stores.cache import DecisionCache
from ...training.callback import attach

BATCH_SIZE = 8
EVALUATE_EVERY = 20  # steps


def smaller_model(prior: Prior) -> Any:
    """The prior's model in float32 with half of its layers: the first ones and the last."""
    model = copy.deepcopy(prior.model).float().requires_grad_(True)
    config: Any = model.config
    num_layers = config.num_hidden_layers
    keep = max(1, num_layers // 2)
    layers = next(
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers
    )
    del layers[max(1, keep - 1) : num_layers - (keep > 1)]
    config.num_hidden_layers = keep
    return model


def train(
    prior: Prior, documents: list[Example], held_out: list[Example],
    policy: EditPolicy | None, *, steps: int, seed: int, deadline: float,
) -> dict[int, float]:  # fmt: skip
    """Train the smaller model on the documents, epoch after epoch.

    Args:
        prior: edits the batches.
        documents: to train on.
        held_out: to measure perplexity on.
        policy: of the edits; None: train without edits.
        steps: of training, at most.
        seed: of the order of the documents.
        deadline: stop at this time, of `time.monotonic`.

    Returns:
        steps -> perplexity on the held-out documents after these steps.
    """
    perplexities: dict[int, float] = {}
    model = smaller_model(prior)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=BATCH_SIZE,
                learning_rate=0.25 / model.config.hidden_size,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=5,
                seed=seed,
                remove_unused_columns=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=prior.device.type == "cpu",
                dataloader_pin_memory=False,
            ),
            train_dataset=[  # type: ignore[arg-type]
                {"input_ids": one.ids, "labels": one.labels} for one in documents
            ],
            data_collator=DataCollatorForSeq2Seq(prior.tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        if policy is not None:
            attach(trainer, prior, policy, cache=_cache_for(policy))
        title = f"training {'without' if policy is None else 'with'} edits"
        trainer.add_callback(_Progress(perplexities, model, held_out, deadline, title))
        trainer.train()
    return perplexities


def _cache_for(policy: EditPolicy) -> DecisionCache | None:
    """A cache in memory, if one can hold what this policy decides."""
    try:
        check_can_be_cached(policy)
    except ValueError:
        return None
    return DecisionCache()


class _Progress(TrainerCallback):
    """Measures held-out perplexity, shows a progress bar, and stops at the deadline."""

    def __init__(
        self, perplexities: dict[int, float], model: Any, held_out: list[Example],
        deadline: float, title: str,
    ) -> None:  # fmt: skip
        self.perplexities = perplexities
        self.model = model
        self.held_out = [(one.ids, one.labels) for one in held_out]
        self.deadline = deadline
        self.title = title

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._measure(0)
        self.bar = progress_bar(lambda: state.max_steps, "steps", desc=self.title)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update()
        if time.monotonic() > self.deadline:
            control.should_training_stop = True
        is_last = control.should_training_stop or state.global_step == state.max_steps
        if is_last or state.global_step % EVALUATE_EVERY == 0:
            self._measure(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()

    def _measure(self, step: int) -> None:
        self.model.eval()
        self.perplexities[step] = perplexity(self.model, self.held_out)
        self.model.train()


@torch.no_grad()
def perplexity(model: Any, documents: Iterable[tuple[list[int], list[int]]]) -> float:
    """Perplexity per label of documents, given by their ids and labels, each scored on its own."""
    total, count = 0.0, 0
    for ids, labels in documents:
        num_labels = sum(label != -100 for label in labels[1:])
        if num_labels:
            row = torch.tensor([ids], device=model.device)
            target = torch.tensor([labels], device=model.device)
            loss = model(input_ids=row, labels=target, use_cache=False).loss
            total += float(loss) * num_labels
            count += num_labels
    return math.exp(total / max(count, 1))
