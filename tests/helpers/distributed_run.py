"""What two ranks do in test_distributed.py; run by torchrun, results in files of each rank."""

from __future__ import annotations

import gc
import json
import os
import pathlib
import sys

import resume_run
import sharded_run
import torch
from conftest import make_llama, make_tokenizer
from peft import get_peft_model
from torch.utils.data import IterableDataset
from trainees import (
    IDLE,
    Recorder,
    counted_passes,
    dataset,
    documents,
    lora,
    make_trainee,
    make_trainer,
    numbers_logged,
    weights,
)

from toedit_collate import DecisionCache, EditPolicy, Prior
from toedit_collate.training.generations import last_checkpoint

TEXTS = documents(8)
ODD = documents(7)
HELD_OUT = documents(4, seed=3)
KEYS = ("toedit/selected_share", "toedit/changed_share", "toedit/prior_perplexity")
MOVED = EditPolicy(threshold=0.004, exclude_original=True)


class Stream(IterableDataset):
    def __iter__(self):
        yield from ({"input_ids": row} for row in TEXTS)


def report(trainer, recorder, collator) -> dict:
    return {
        "rows": recorder.rows(training=True),
        "evaluated": recorder.rows(training=False),
        "logged": [
            {key: entry.get(key) for key in KEYS}
            for entry in trainer.state.log_history
            if KEYS[0] in entry
        ],
        "eval": numbers_logged(trainer, "eval_"),
        "losses": [entry["loss"] for entry in numbers_logged(trainer, "loss")],
        "stats": {key: collator.stats[key] for key in ("batches", "scored", "changed")}
        if collator
        else None,
    }


def edited(folder, way="callback", texts=TEXTS, **settings) -> dict:
    """A separate prior; four documents to a step, however many ranks there are."""
    settings = {
        "train": dataset(texts), "learning_rate": 0.0, "logging_steps": 1,
        "per_device_train_batch_size": 4 // int(os.environ.get("WORLD_SIZE", "1")),
        "eval_strategy": "epoch", "num_train_epochs": 2,
        "trainer_arguments": {"eval_dataset": dataset(HELD_OUT)}, **settings,
    }  # fmt: skip
    trainer, collator = make_trainer(folder, make_tokenizer(), way=way, **settings)
    recorder = Recorder(trainer.model)
    trainer.train()
    return report(trainer, recorder, collator)


def cached(folder) -> dict:
    """Each epoch gives a rank other documents; what either has decided is known to both."""
    prior = Prior(make_llama(), make_tokenizer())
    with counted_passes(prior) as passes:
        result = edited(folder, prior=prior, cache=DecisionCache(folder / "cache"))
    return {**result, "documents_scored": sum(passes)}


def stream(folder) -> dict:
    return edited(
        folder, train=Stream(), max_steps=2, num_train_epochs=1,
        accelerator_config={"dispatch_batches": False},
    )  # fmt: skip


def dispatched(folder) -> dict:
    try:
        edited(folder, train=Stream(), max_steps=2)
    except ValueError as error:
        return {"error": str(error)}
    return {"error": None}


def shared(folder, policy=None, **settings) -> dict:
    """LoRA with dropout and accumulation; `policy` None: without editing."""
    torch.manual_seed(0)
    model = get_peft_model(make_trainee(), lora(lora_dropout=0.2))
    prior = Prior.shared(model) if policy else None
    trainer, collator = make_trainer(
        folder, make_tokenizer(), way="callback" if policy else None, model=model, prior=prior,
        policy=policy, train=dataset(documents(16)), learning_rate=1e-2, num_train_epochs=2,
        gradient_accumulation_steps=2, ddp_find_unused_parameters=False, **settings,
    )  # fmt: skip
    recorder = Recorder(model.get_base_model())
    passes = []
    if prior:
        with counted_passes(prior) as passes:
            trainer.train()
    else:
        trainer.train()
    result = report(trainer, recorder, collator)
    result["passes"] = len(passes)
    rank = os.environ.get("RANK", "0")
    name = f"weights-{'idle' if policy is IDLE else policy and 'edit'}-{len(settings)}-{rank}.pt"
    torch.save(weights(model), folder / name)
    result["weights"] = name
    return result


def swapped(folder, kind, name, *, stop_at=resume_run.STEPS, **settings) -> dict:
    """Swaps and a journal, no dropout; four documents to a step, however many ranks there are.

    In a folder of which a checkpoint is there already, the run is resumed.
    """
    folder = folder / name
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    result = resume_run.run(
        folder, kind, stop_at=stop_at, dropout=0.0, per_device_train_batch_size=2 // ranks,
        ddp_find_unused_parameters=False, resume_from=last_checkpoint(folder / "out"), **settings,
    )  # fmt: skip
    result["collator"].journal.close()
    return {key: result[key] for key in ("rows", "losses", "generation", "prior", "passes")}


def cut_short(folder, kind, name, **settings) -> dict:
    """Stopped at step 6, and resumed."""
    return {
        "first": swapped(folder, kind, name, stop_at=6, **settings),
        "second": swapped(folder, kind, name, **settings),
    }


CHECKPOINTING = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}
SCENARIOS = {
    "collator": lambda folder: edited(folder, "collator"),
    "callback": edited,
    "cached": cached,
    "odd": lambda folder: edited(folder, texts=ODD),
    "stream": stream,
    "dispatched": dispatched,
    "plain": lambda folder: edited(folder, None),
    "shared, plain": shared,
    "shared, idle": lambda folder: shared(folder, IDLE),
    "shared, edited": lambda folder: shared(folder, MOVED),
    "shared, plain, checkpointing": lambda folder: shared(folder, None, **CHECKPOINTING),
    "swapped, epoch": lambda folder: swapped(folder, "full, epoch", "epoch"),
    "swapped, save": lambda folder: swapped(folder, "shared, save", "save"),
    "swapped, resumed": lambda folder: cut_short(folder, "shared, epoch", "resumed"),
    "swapped, stopped": lambda folder: swapped(folder, "full, 3", "stopped", stop_at=6),
    "shared, idle, checkpointing": lambda folder: shared(folder, IDLE, **CHECKPOINTING),
    "sharded": sharded_run.find,
}


def main(folder: pathlib.Path) -> None:
    gc.freeze()  # as in conftest.py
    results = {name: scenario(folder) for name, scenario in SCENARIOS.items()}
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(results))
    # Ends with an error: without the callback, it is the first batch that finds out.
    edited(folder, "collator", train=Stream(), max_steps=2)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
