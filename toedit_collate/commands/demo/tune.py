"""A LoRA run on the prior's own weights, with or without editing."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from transformers import PrinterCallback, TrainerCallback

from ...data.demo_text import Corpus
from ...data.progress import progress_bar
from ...policy import EditPolicy
from ...prior.prior import Prior
from ...training.attach import attach

BATCH_SIZE = 8
MAX_LENGTH = 1024  # of a document, where the prior allows more
MAX_HELD_OUT = 40  # documents
_LEARNING_RATE = 1e-3
_TENSORS = ("input_ids", "attention_mask", "labels")  # what edit_tokens takes


@dataclass(frozen=True)
class Run:
    """A LoRA run: held-out perplexity after it, and what the collator counted."""

    perplexity: float
    stats: dict[str, float] | None  # None: it was not edited
    time_share: float  # seconds of the edit pass / seconds of the training steps


def max_length(prior: Prior) -> int:
    """The length at which the demo cuts documents, in tokens."""
    return min(prior.max_length or MAX_LENGTH, MAX_LENGTH)


def training_batches(prior: Prior, corpus: Corpus, *, steps: int, seed: int) -> list[Any]:
    """The batches of a LoRA run, unedited, as its Trainer makes them."""
    with lora_trainer(prior, corpus, steps=steps, seed=seed) as trainer:
        loader = trainer.get_train_dataloader()
        return [{k: v for k, v in b.items() if k in _TENSORS} for b in islice(loader, steps)]


def tune(prior: Prior, corpus: Corpus, policy: EditPolicy | None, *, steps: int, seed: int) -> Run:
    """LoRA-tune the prior's weights with SFTTrainer; `policy` None: without editing.

    The weights are as before afterwards.
    """
    with lora_trainer(prior, corpus, steps=steps, seed=seed) as trainer:
        collator = None
        if policy is not None:
            # The base that LoRA leaves frozen is the prior: no second copy of the weights.
            collator = attach(trainer, Prior.shared(trainer.model), policy)
        trainer.add_callback(
            _Bar("LoRA without editing" if policy is None else "LoRA with editing")
        )
        trainer.train()
        logged = [log for log in trainer.state.log_history if "toedit/time_share" in log]
        return Run(
            perplexity=_perplexity(trainer),  # a Trainer's evaluation is never edited
            stats=None if collator is None else collator.stats,
            time_share=logged[-1]["toedit/time_share"] if logged else 0.0,
        )


@contextmanager
def lora_trainer(prior: Prior, corpus: Corpus, *, steps: int, seed: int) -> Iterator[Any]:
    """An SFTTrainer whose trainee is the prior's model with LoRA on it; then takes LoRA off."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    on_cpu = prior.device.type == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = SFTTrainer(
            model=cast(Any, prior.model),
            args=SFTConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=BATCH_SIZE,
                per_device_eval_batch_size=BATCH_SIZE,
                learning_rate=_LEARNING_RATE,
                max_length=max_length(prior),
                seed=seed,
                logging_steps=steps,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=on_cpu,
                dataloader_pin_memory=not on_cpu,
            ),
            train_dataset=Dataset.from_list(corpus.train),
            eval_dataset=Dataset.from_list(corpus.held_out[:MAX_HELD_OUT]),
            processing_class=prior.tokenizer,
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        )
        trainer.remove_callback(PrinterCallback)
        try:
            yield trainer
        finally:
            prior.model = trainer.model.unload().eval().requires_grad_(False)


def held_out_perplexity(prior: Prior, corpus: Corpus) -> float:
    """Perplexity of the prior itself, measured as `tune` measures it."""
    with lora_trainer(prior, corpus, steps=1, seed=0) as trainer:
        return _perplexity(trainer)


def _perplexity(trainer: Any) -> float:
    return math.exp(trainer.evaluate()["eval_loss"])


class _Bar(TrainerCallback):
    """A progress bar on stderr; the Trainer's own would print its logs to stdout."""

    def __init__(self, title: str) -> None:
        self.title = title

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = progress_bar(lambda: state.max_steps, "steps", desc=self.title)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()
