"""The estimate beside what is measured: a trainee of the same size with random weights."""

from __future__ import annotations

import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from ...policy import EditPolicy
from ...prior.prior import Prior
from ...tools.errors import UnusableError, first_line
from ...tools.measuring.calibrate import shape_head
from ...tools.measuring.inputs import Inputs, Source
from ...tools.measuring.machine import (
    available_bytes,
    free_memory,
    gib,
    is_out_of_memory,
    synchronize,
)
from ...tools.measuring.memory import peak_bytes
from ...training.collator import ToEditCollator
from .cards import CARDS
from .estimate import Estimate, on_one
from .models import find_config
from .parameters import with_adapters
from .saved import saved_bytes
from .table import duration

_WARM_UPS = {"cuda": 2}  # steps; elsewhere one
_LEARNING_RATE = 1e-6  # the weights should hardly move: all steps must cost the same
_SEED = 0


@dataclass(frozen=True)
class Measured:
    """Figures by name: what was predicted, and what was measured; bytes and seconds.

    Attributes:
        device: that it was measured on.
        rows: (name, unit, predicted, measured).
        notes: how.
    """

    device: str
    rows: list[tuple[str, str, float, float]]
    notes: list[str]

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        rows = [
            dict(zip(("name", "unit", "predicted", "measured"), r, strict=True)) for r in self.rows
        ]
        return {"device": self.device, "rows": rows, "notes": self.notes}


def measure(plan: Estimate, num_steps: int, *, policy: EditPolicy | None = None) -> Measured:
    """Run some steps without editing, and some with.

    Args:
        plan: what was estimated; one process of it is measured.
        num_steps: of each kind.
        policy: how to edit; None: the paper's.

    Raises:
        UnusableError: it does not fit into this machine, or can't be built of random weights.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = plan.card if device.type == "cuda" and plan.card.is_gpu else CARDS["cpu"]
    if device.type == "cuda" and not card.is_gpu:
        raise UnusableError("--gpu cpu: --measure takes the GPU of this machine; name its card")
    one = on_one(plan, card)
    if one.run.quantization:
        raise UnusableError(
            "--measure: a quantized base can't be made of random weights; measure it in 16 bits: "
            "--load_in_4bit false --load_in_8bit false"
        )
    needed, free = one.memory.peak, available_bytes(device)
    if needed > free:
        raise UnusableError(
            f"--measure: it should take {gib(needed)}, and {gib(free)} are free on {device}; "
            "plan a smaller batch (--per_device_train_batch_size) or a larger card"
        )
    try:
        return _Trial(one, device, policy or EditPolicy.paper()).run(num_steps)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UnusableError(
            f"--measure: out of memory on {device}, where {gib(needed)} were expected; plan a "
            "smaller batch (--per_device_train_batch_size)"
        ) from None


def format_measured(measured: Measured) -> str:
    """A table of what was predicted and what was measured."""
    lines = ["", f"Measured on {measured.device}", f"{'':36}{'predicted':>12}{'measured':>12}"]
    for name, unit, predicted, found in measured.rows:
        lines.append(f"  {name:34}{_cell(predicted, unit):>12}{_cell(found, unit):>12}")
    return "\n".join([*lines, *measured.notes])


def _cell(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.2f} MiB"
    return duration(value) if unit == "seconds" else f"{value:.0%}"


class _Trial:
    """A trainee, a prior and batches, as one process of a recipe has them."""

    def __init__(self, plan: Estimate, device: torch.device, policy: EditPolicy) -> None:
        run = plan.run
        self.plan, self.device = plan, device
        self.dtype = {4: torch.float32, 2: torch.bfloat16}[plan.precision.weights]
        trainee: Any = _random(run.model, run.config_overrides, device, self.dtype)
        if run.attention is not None:
            trainee.set_attn_implementation(run.attention)
        self.head_is_fused = run.fused_head and _fuse_head(trainee)
        base = trainee
        self.prior_model: Any = None  # beside the trainee
        if plan.prior is not None:
            dtype = torch.float32 if plan.prior.element == 4 else torch.bfloat16
            self.prior_model = _random(str(run.prior), {}, device, dtype)
        self.inputs: Inputs | None = None
        prior = None
        if run.prior is not None:
            scores: Any = base if self.prior_model is None else self.prior_model
            direction = shape_head(scores.get_output_embeddings().weight.detach())
            prior = Prior(scores)
            source = Source(prior, "", None, None, _SEED, direction)
            self.inputs = source.inputs(run.B, run.T, option="--max_length")
        if run.lora is not None:
            base.requires_grad_(False)
            trainee = with_adapters(base, run.lora)
        if run.checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
            if run.lora is not None:
                base.enable_input_require_grads()
        if run.prior == "shared":
            prior = Prior.shared(trainee)
        self.trainee: nn.Module = trainee.train()
        self.collator = None
        if prior is not None:
            self.collator = ToEditCollator(prior, policy, base_collator=dict)
        self.trained = [p for p in self.trainee.parameters() if p.requires_grad]
        self.optimizer = _optimizer(run.optimizer, self.trainee, self.trained)

    def run(self, num_steps: int) -> Measured:
        plan, memory = self.plan, self.plan.memory
        plain, plain_peak = self._time(num_steps, edited=False)
        rows = []
        unedited = max(b for name, b in memory.moments.items() if name != "edit pass")
        if self.device.type != "cuda":
            rows += self._counted()
        rows.append(("peak without editing", "bytes", unedited, plain_peak))
        rows.append(("time of a step without editing", "seconds", plan.times.train, plain))
        if self.collator is not None:
            edited, edited_peak = self._time(num_steps, edited=True)
            rows.append(("peak with editing", "bytes", memory.peak, edited_peak))
            rows.append(("time of a step with editing", "seconds", plan.times.step, edited))
            share = (edited - plain) / edited
            rows.append(("share of the edit pass", "", plan.times.edit_share, share))
        return Measured(_name(self.device), rows, self._notes(num_steps))

    def _counted(self) -> list[tuple[str, str, float, float]]:
        parts = self.plan.memory.parts
        gradients = sum(p.numel() * p.element_size() for p in self.trained)
        return [
            ("weights", "bytes", parts["weights"], _weights_of(self.trainee)),
            ("gradients", "bytes", parts["gradients"], gradients),
            ("optimizer", "bytes", parts["optimizer"], _states_of(self.optimizer)),
            ("saved for backward", "bytes", self.plan.memory.saved, self._saved()),
        ]

    def _peak(self, number: int, *, edited: bool) -> float:
        """Bytes in use at once in a step, weights and optimizer included."""

        def step() -> None:
            self._step(number, edited=edited)

        if self.device.type == "cuda":
            return float(torch.cuda.memory_allocated(self.device) + peak_bytes(step, self.device))
        always = _weights_of(self.trainee) + _states_of(self.optimizer)
        if self.prior_model is not None:
            always += _weights_of(self.prior_model)
        return float(always + peak_bytes(step, self.device))

    def _time(self, num_steps: int, *, edited: bool) -> tuple[float, float]:
        """Median seconds of a step, and the peak of memory of one more, in bytes."""
        seconds = []
        warm_ups = _WARM_UPS.get(self.device.type, 1)
        free_memory(self.device)
        for number in range(-warm_ups, num_steps):
            synchronize(self.device)
            started = time.perf_counter()
            self._step(number + warm_ups, edited=edited)
            synchronize(self.device)
            if number >= 0:
                seconds.append(time.perf_counter() - started)
        return median(seconds), self._peak(num_steps + warm_ups, edited=edited)

    def _step(self, number: int, *, edited: bool) -> None:
        """As the Trainer does it: all batches are fetched, and so edited, before the first."""
        batches: list[Any] = []
        for _ in range(self.plan.run.accumulation):
            if not edited or self.collator is None or self.inputs is None:
                batches.append({k: v.to(self.device) for k, v in self._batch().items()})
                continue
            self.collator.set_epoch(number)
            with self.inputs.in_place():
                batches.append(self.collator(self.inputs.batch(0)).to(self.device))
        for batch in batches:
            self._loss(batch).backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _batch(self) -> Any:
        if self.inputs is not None:
            return self.inputs.batch(0)
        run = self.plan.run
        ids = torch.randint(0, self.plan.layers.V, (run.B, run.T))
        return {"input_ids": ids, "labels": ids}

    def _loss(self, batch: Any) -> torch.Tensor:
        options = {"fused_lm_head": True} if self.head_is_fused else {}
        casts = torch.autocast(self.device.type, torch.bfloat16) if self.plan.run.autocast else None
        with casts or nullcontext():
            given = {"input_ids": batch["input_ids"], "labels": batch["labels"]}
            return self.trainee(**given, use_cache=False, **options).loss

    def _saved(self) -> float:
        batch = {k: v.to(self.device) for k, v in self._batch().items()}
        return saved_bytes(self.trainee, lambda: self._loss(batch))

    def _notes(self, num_steps: int) -> list[str]:
        notes = [
            f"Random weights in full rows without padding or mask, one process, {num_steps} steps "
            "after a warm-up; times are medians."
        ]
        if self.device.type == "cuda":
            notes.append("Memory by torch.cuda.max_memory_allocated.")
        else:
            notes.append(
                "Memory: tensors alive at once; what an operation takes and gives back inside "
                "itself is not seen."
            )
        if not self.head_is_fused:
            notes.append("The loss builds the logits: TRL's fused head was not to be had.")
        return notes


def _random(name: str, overrides: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    config = find_config(name, overrides, field="model_name_or_path")
    torch.manual_seed(_SEED)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _fuse_head(model: Any) -> bool:
    """Give a model the loss that SFTTrainer gives it; False: this version of TRL has none."""
    try:
        from trl.trainer.utils import add_fused_lm_head
    except ImportError:
        return False
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    return True


def _optimizer(name: str, model: Any, weights: list[Any]) -> torch.optim.Optimizer:
    """The Trainer's own, by its name."""
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(folder, optim=name, learning_rate=_LEARNING_RATE, report_to=[])
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    except (ImportError, ValueError) as error:
        raise UnusableError(f"optim {name}: {first_line(error)}") from None
    return kind(weights, **options)


def _weights_of(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _states_of(optimizer: torch.optim.Optimizer) -> int:
    states = [value for state in optimizer.state.values() for value in state.values()]
    return sum(v.numel() * v.element_size() for v in states if isinstance(v, torch.Tensor))


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
