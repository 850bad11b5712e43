"""What two ranks do in test_drawn_ranks.py; run by torchrun, results in files of each rank."""

from __future__ import annotations

import json
import os
import pathlib
import sys

import torch
from accelerate import PartialState
from conftest import make_tokenizer
from torch.distributed.fsdp import fully_shard
from trainees import dataset, documents, make_prior, make_trainee, make_trainer, weights

from toedit_collate import EditPolicy, edit_tokens
from toedit_collate.training.drawn_loss import use_drawn_labels

POLICY = EditPolicy.distill(8)


def ddp(folder, kind) -> list[float]:
    """Four rows of different lengths in each step, however many ranks there are."""
    trainer, _ = make_trainer(
        folder, make_tokenizer(), kind=kind, way="callback", policy=POLICY, optim="sgd",
        learning_rate=0.5, max_grad_norm=0.0, max_steps=2, train=dataset(documents(8)),
        per_device_train_batch_size=2 // int(os.environ.get("WORLD_SIZE", "1")),
        gradient_accumulation_steps=2, seed=3,
    )  # fmt: skip
    trainer.train()
    # Which rank has which rows differs from one process; the sum of a step does not.
    torch.save(weights(trainer.model), folder / f"{kind}-{os.environ.get('RANK', 'alone')}.pt")
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def fsdp(head_alone: bool) -> dict[str, torch.Tensor]:
    """The gradients of a sharded model, whole, and of the same model on one rank."""
    rows = [torch.tensor([row[:8] for row in documents(2, seed=seed)]) for seed in (0, 1)]
    found = {}
    for sharded in (True, False):
        model = make_trainee()
        use_drawn_labels(model)
        if sharded:
            for layer in model.model.layers:
                fully_shard(layer)
            if head_alone:
                fully_shard(model.lm_head)
            fully_shard(model)
        for ids in [rows[int(os.environ["RANK"])]] if sharded else rows:
            draws = edit_tokens(make_prior(), ids, labels=ids, policy=POLICY).draws
            loss = model(input_ids=ids, labels=ids, draws=draws).loss
            (loss if sharded else loss / 2).backward()
        found[sharded] = {
            name: p.grad.full_tensor() if sharded else p.grad
            for name, p in model.named_parameters()
        }
    return {
        name: float((found[True][name] - found[False][name]).abs().max()) for name in found[True]
    }


def main(folder: pathlib.Path) -> None:
    results = {kind: ddp(folder, kind) for kind in ("Trainer", "SFTTrainer")}
    PartialState(cpu=True)
    results |= {"fsdp": fsdp(False), "fsdp, head alone": fsdp(True)}
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
