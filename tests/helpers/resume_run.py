"""A run of training that test_resume.py kills and resumes; and a server that forks such runs.

The server has imported everything, so that a run takes a second or two; it never trains itself.
"""

from __future__ import annotations

import gc
import json
import os
import pathlib
import signal
import sys
import traceback

import torch
from conftest import make_llama, make_tokenizer
from peft import get_peft_model
from trainees import Recorder, counted_passes, dataset, documents, lora, make_trainer
from transformers import TrainerCallback, TrainerState

from toedit_collate import EditPolicy, Journal, Prior
from toedit_collate.stores import segments
from toedit_collate.training.generations import last_checkpoint

# 4 steps to an epoch; checkpoints at 2, 4, ... 12.
TEXTS = documents(16)
STEPS = 12
POLICY = EditPolicy(threshold=0.05, exclude_original=True)
KINDS = {
    "full, epoch": {"refresh": "epoch"},
    "full, save": {"refresh": "save"},
    "full, 3": {"refresh": 3},
    "lora, epoch": {"refresh": "epoch", "adapter": True},
    "lora, save": {"refresh": "save", "adapter": True},
    "shared, epoch": {"refresh": "epoch", "adapter": True, "shared": True},
    "shared, save": {"refresh": "save", "adapter": True, "shared": True},
    "shared, 3": {"refresh": 3, "adapter": True, "shared": True},
    "full, never": {"refresh": None},
}


class Stop(TrainerCallback):
    """Ends a run early, as if it had been stopped; the schedule is that of the whole run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_training_stop |= state.global_step >= self.step

    def on_save(self, args, state, control, **kwargs) -> None:
        control.should_training_stop |= state.global_step >= self.step


def make_run(
    folder, kind, *, journal=True, way="callback", stop_at=STEPS, prior=None, dropout=0.1,
    **settings,
):  # fmt: skip
    """Trainer and collator; `journal`: whether there is one, or a `Journal`."""
    kind = KINDS[kind]
    model = make_llama(attention_dropout=dropout)
    if kind.get("adapter"):
        torch.manual_seed(0)
        model = get_peft_model(model, lora(lora_dropout=dropout, target_modules="all-linear"))
    if prior is None:
        prior = Prior.shared(model) if kind.get("shared") else Prior(make_llama())
    if journal is True:
        journal = Journal(pathlib.Path(folder) / "journal")
    settings = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2,
        "train": dataset(TEXTS), "refresh": kind["refresh"], **settings,
    }  # fmt: skip
    return make_trainer(
        pathlib.Path(folder) / "out", make_tokenizer(), way=way, model=model, prior=prior,
        policy=POLICY, journal=journal or None, callbacks=[Stop(stop_at)], **settings,
    )  # fmt: skip


def run(folder, kind, *, resume_from=None, **settings) -> dict:
    """Train; what came of it."""
    trainer, collator = make_run(folder, kind, **settings)
    recorder = Recorder(base_of(trainer.model))
    # Without editing there is no prior; some other is watched instead.
    prior = collator.prior if collator else Prior(make_llama())
    with counted_passes(prior) as passes:
        trainer.train(resume_from_checkpoint=resume_from)
    return {
        "rows": recorder.batches(training=True),
        "passes": len(passes),
        "losses": {e["step"]: e["loss"] for e in trainer.state.log_history if "loss" in e},
        "weights": trained_weights(trainer.model),
        "generation": prior.generation,
        "prior": prior.fingerprint,
        "trainer": trainer,
        "collator": collator,
    }


def base_of(model):
    return model.get_base_model() if hasattr(model, "peft_config") else model


def trained_weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def append(path: pathlib.Path, line: dict) -> None:
    """Write a line at once; a killed process leaves it whole, or not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, json.dumps(line).encode() + b"\n")
    os.close(descriptor)


def killable(folder: pathlib.Path, kind: str, die: str | int | None) -> None:
    """Go on where the last attempt was killed; rows are written down as the model gets them.

    Args:
        die: kills the process before that file operation in the folder, by number, or at one of
            the moments in `TORN`; None: it runs to its end.
    """
    out = folder / "out"
    checkpoint = last_checkpoint(out)
    trainer, collator = make_run(folder, kind)

    def write_down(module, args, kwargs) -> None:
        if module.training:
            mask = kwargs["attention_mask"].bool()
            rows = [r[m].tolist() for r, m in zip(kwargs["input_ids"], mask, strict=True)]
            append(folder / "rows.jsonl", {"step": trainer.state.global_step, "rows": rows})

    base_of(trainer.model).register_forward_pre_hook(write_down, with_kwargs=True)
    operations = die_at(folder, die)
    trainer.train(resume_from_checkpoint=checkpoint)
    result = {
        "losses": [e["loss"] for e in trainer.state.log_history if "loss" in e],
        "generation": collator.prior.generation,
        "operations": len(operations),
    }
    torch.save(trained_weights(trainer.model), folder / "weights.pt")
    collator.journal.close()
    (folder / "result.json").write_text(json.dumps(result))


def die_at(folder: pathlib.Path, die: str | int | None) -> list[str]:
    """Arrange for the process to be killed; returns the list of its file operations."""
    operations: list[str] = []
    events = {"open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.rmdir", "os.truncate"}
    inside = str(folder / "out"), str(folder / "journal")

    def count(event: str, args: tuple) -> None:
        if event in events and isinstance(args[0], str | os.PathLike):
            if not str(args[0]).startswith(inside):
                return
            if len(operations) == die:
                os.kill(os.getpid(), signal.SIGKILL)
            operations.append(f"{event} {args[0]}")

    if isinstance(die, str):
        TORN[die]()
    else:
        sys.addaudithook(count)
    return operations


def tear_frame() -> None:
    calls = []
    write = segments.write_whole

    def half(path, data):
        calls.append(path)
        if len(calls) < 3:
            return write(path, data)
        path.with_name(f"{path.name}.0123456789ab.unfinished").write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    segments.write_whole = half


def tear_state() -> None:
    save = TrainerState.save_to_json

    def half(self, path):
        save(self, path)
        if self.global_step == 6:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    TrainerState.save_to_json = half


def tear_weights() -> None:
    import transformers.trainer as module

    save = module.Trainer.save_model

    def half(self, output_dir=None, **kwargs):
        save(self, output_dir, **kwargs)
        if self.state.global_step == 6:
            for file in pathlib.Path(output_dir).glob("*.safetensors"):
                os.truncate(file, file.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    module.Trainer.save_model = half


def tear_swap() -> None:
    complete = Prior.complete_swap

    def before(self, prepared):
        if self.generation == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        complete(self, prepared)

    Prior.complete_swap = before


def tear_swapped() -> None:
    complete = Prior.complete_swap

    def after(self, prepared):
        complete(self, prepared)
        if self.generation == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    Prior.complete_swap = after


TORN = {
    "frame": tear_frame,
    "state": tear_state,
    "weights": tear_weights,
    "swap": tear_swap,
    "swapped": tear_swapped,
}


def serve() -> None:
    """For each line on stdin, fork a run; print its process id, and how it ended."""
    torch.set_num_threads(1)
    gc.freeze()  # as in conftest.py
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1)
                killable(pathlib.Path(order["folder"]), order["kind"], order["die"])
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
