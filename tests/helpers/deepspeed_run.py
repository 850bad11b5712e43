"""What two ranks do with DeepSpeed in test_deepspeed.py; run by torchrun, on CPUs."""

from __future__ import annotations

import json
import os
import pathlib
import sys

os.environ["DS_ACCELERATOR"] = "cpu"

from conftest import make_llama, make_tokenizer
from peft import get_peft_model
from trainees import AGGRESSIVE, Recorder, dataset, documents, lora, make_trainer
from transformers import TrainingArguments

from toedit_collate import Journal, Prior, ToEditCallback, ToEditCollator
from toedit_collate.training.generations import last_checkpoint
from toedit_collate.training.snapshot import LiveWeights

TOKENIZER = make_tokenizer()
TEXTS = documents(8)


def settings(stage: int) -> dict:
    return {
        "deepspeed": {
            "zero_optimization": {"stage": stage},
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": 1,
            "zero_allow_untested_optimizer": True,
        },
        "optim": "adamw_torch",
    }


def train(folder, *, resume=False, prior=None, **arguments) -> dict:
    prior = prior or Prior(make_llama(), TOKENIZER)
    collator = ToEditCollator(prior, AGGRESSIVE, journal=Journal(folder / "journal"))
    trainer, _ = make_trainer(
        folder / "out", TOKENIZER, callbacks=[ToEditCallback(collator, "epoch")],
        train=dataset(TEXTS), num_train_epochs=3, **arguments,
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    checkpoint = last_checkpoint(folder / "out") if resume else None
    trainer.train(resume_from_checkpoint=checkpoint)
    weights = Prior(make_llama(), TOKENIZER)
    weights.swap(LiveWeights(trainer.model_wrapped))
    return {
        "rows": recorder.rows(training=True),
        "generation": prior.generation,
        "is the trainee": prior.fingerprint == weights.fingerprint,
        "stats": collator.journal.stats(),
        "resumed": checkpoint is not None,
    }


def loaded_after_the_arguments(folder, stage) -> bool:
    """Whole on each rank, though transformers would now partition what it loads."""
    arguments = TrainingArguments(str(folder / "out"), use_cpu=True, **settings(stage))
    prior = Prior.from_pretrained(folder / "model")
    return arguments.deepspeed and prior.fingerprint == Prior(make_llama()).fingerprint


def shared(folder, stage) -> str | None:
    model = get_peft_model(make_llama(1), lora())
    prior = Prior.shared(model)
    trainer, _ = make_trainer(
        folder, TOKENIZER, way="callback", prior=prior, model=model, **settings(stage)
    )
    try:
        trainer.train()
    except ValueError as error:
        return str(error)
    return None


def main(folder: pathlib.Path, stage: int) -> None:
    rank = os.environ["RANK"]
    if stage:
        given = settings(stage)
        results = {
            "whole": train(folder / "whole", **given),
            "first half": train(folder / "halves", max_steps=3, save_steps=3,
                                save_strategy="steps", **given),
            "second half": train(folder / "halves", resume=True, **given),
            "loaded after": loaded_after_the_arguments(folder, stage),
            "shared": shared(folder / "shared", stage),
        }  # fmt: skip
    else:
        results = {"whole": train(folder / "whole")}
    (folder / f"stage-{stage}-rank-{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
