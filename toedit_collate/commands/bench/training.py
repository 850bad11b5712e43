"""The part `training`: a whole step of training with editing, beside the same step without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ...policy import EditPolicy
from ...prior.prior import Prior
from ...stores.cache import DecisionCache
from ...training.collator import ToEditCollator
from ..measuring.inputs import Inputs
from ..measuring.machine import available_bytes, free_memory, gib, is_out_of_memory
from ..measuring.timing import Comparison, Quartiles, Variant, compare
from .edit import COLUMNS
from .memory import peak_bytes
from .table import Column, Row, Section

_SECONDS = 20.0
_LEARNING_RATE = 1e-6  # the weights should hardly move: all steps must cost the same
_PLAIN, _EDITED, _CACHED = "without editing", "edited", "epoch 2, cached"

Setup = Callable[[], AbstractContextManager[tuple[nn.Module, Prior]]]
"""Makes a trainee, and a prior for it."""


def measure_training(inputs: Inputs, policy: EditPolicy, *, pairs: int) -> Section:
    """Time steps of LoRA and of full fine-tuning: forward, backward, AdamW."""
    on_gpu = inputs.device.type == "cuda"
    section = Section(
        "training",
        f"Time of a training step on {inputs.size} / time without editing",
        [*COLUMNS, *([Column("more MiB", "{extra_mib:+,.1f}")] if on_gpu else [])],
        notes=[
            "A plain loop; LoRA: r = 16, all-linear, scored by Prior.shared; full fine-tuning: "
            "scored by a prior of its own. Weights in the dtype above, AdamW."
        ],
    )

    def measure(name: str, setup: Setup) -> bool:
        rows = _measure_steps(name, setup, inputs, policy, pairs)
        section.rows += rows or [Row(name, text="out of memory")]
        return bool(rows)

    if _has_peft():
        measure("LoRA, checkpointing", partial(_lora, inputs, checkpointing=True))
        measure("LoRA", partial(_lora, inputs, checkpointing=False))
    else:
        section.notes.append(
            'LoRA is left out: it needs peft; pip install "toedit_collate[recipes]"'
        )
    # The weights once more, their gradients, and AdamW's two moments.
    needed = 4 * sum(p.numel() * p.element_size() for p in inputs.prior.model.parameters())
    free = available_bytes(inputs.device)
    if needed > free:
        text = f"left out: takes {gib(needed)} more, {gib(free)} are free"
        section.rows.append(Row("full fine-tuning", text=text))
    elif not measure("full fine-tuning", partial(_full, inputs, checkpointing=False)):
        measure("full fine-tuning, checkpointing", partial(_full, inputs, checkpointing=True))
    return section


def _measure_steps(
    name: str, setup: Setup, inputs: Inputs, policy: EditPolicy, pairs: int
) -> list[Row]:
    """The rows of one kind of training; none if memory runs out."""
    try:
        times, peaks = _time_steps(setup, inputs, policy, pairs)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        times = None
    free_memory(inputs.device)
    if times is None or times.out_of_memory:
        return []
    rows = []
    for step in times.seconds:
        if step == _PLAIN:
            rows.append(Row(f"{name}, {step}", {"ms": times.milliseconds(step)}))
            continue
        quartiles = Quartiles.of(times.ratios(step, _PLAIN))
        figures = {
            "ratio": quartiles.median,
            "low": quartiles.low,
            "high": quartiles.high,
            "ms": times.milliseconds(step),
            "all_ms": [1000 * s for s in times.seconds[step]],
            "all_ms_without": [1000 * s for s in times.seconds[_PLAIN]],
        }
        if step in peaks:
            figures["extra_mib"] = peaks[step] - peaks[_PLAIN]
        rows.append(Row(f"{name}, {step}", figures))
    return rows


def _time_steps(
    setup: Setup, inputs: Inputs, policy: EditPolicy, pairs: int
) -> tuple[Comparison, dict[str, float]]:
    """Times of the steps; and on a GPU, the peak memory of each in MiB."""
    with setup() as (trainee, prior):
        steps = training_steps(inputs, trainee, prior, policy)
        times = compare(steps, inputs.device, pairs=pairs, seconds=_SECONDS)
        peaks = {}
        if inputs.device.type == "cuda" and not times.out_of_memory:
            for name, step in steps.items():
                peaks[name] = peak_bytes(partial(step, 0), inputs.device) / 2**20
        return times, peaks


def training_steps(
    inputs: Inputs, trainee: nn.Module, prior: Prior, policy: EditPolicy
) -> dict[str, Variant]:
    """One step without editing, one with, and one whose decisions a first epoch has cached."""
    weights = [p for p in trainee.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=_LEARNING_RATE)

    def step(collate: Callable[[Any], Any], number: int) -> None:
        # As a DataLoader and accelerate do it: collate, then move, which edits.
        batch = collate(inputs.batch(number)).to(inputs.device)
        trainee(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    editing = ToEditCollator(prior, policy, base_collator=dict)
    cached = ToEditCollator(prior, policy, base_collator=dict, cache=DecisionCache())
    with inputs.in_place():
        for batch in inputs.batches:
            cached(batch).to(inputs.device)  # the first epoch

    def edited_step(collator: ToEditCollator) -> Variant:
        def run(number: int) -> None:
            collator.set_epoch(number)
            with inputs.in_place():
                step(collator, number)

        return run

    return {
        _PLAIN: lambda number: step(_Unedited, number),
        _EDITED: edited_step(editing),
        _CACHED: edited_step(cached),
    }


class _Unedited(dict[str, Any]):
    """A batch that is only moved."""

    def to(self, device: torch.device) -> _Unedited:
        return _Unedited({key: value.to(device) for key, value in self.items()})


@contextmanager
def _lora(inputs: Inputs, *, checkpointing: bool) -> Iterator[tuple[nn.Module, Prior]]:
    """LoRA on the prior's own weights, and the prior that they are; then takes LoRA off."""
    from peft import LoraConfig, get_peft_model

    base: Any = inputs.prior.model
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    # Adapters in the dtype of the weights, as under autocast: in float32 they would slow the step
    # down, which would flatter the edit.
    trainee: Any = get_peft_model(base, config, autocast_adapter_dtype=False)
    trainee.train()
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    try:
        yield trainee, Prior.shared(trainee, tokenizer=inputs.prior.tokenizer)
    finally:
        if checkpointing:
            base.gradient_checkpointing_disable()
            base.disable_input_require_grads()
        trainee.unload().eval().requires_grad_(False)


@contextmanager
def _full(inputs: Inputs, *, checkpointing: bool) -> Iterator[tuple[nn.Module, Prior]]:
    """A copy of the prior's weights to train."""
    trainee: Any = copy.deepcopy(inputs.prior.model)
    if checkpointing:
        trainee.gradient_checkpointing_enable({"use_reentrant": False})
    yield trainee.requires_grad_(True).train(), inputs.prior


def _has_peft() -> bool:
    try:
        import peft  # noqa: F401
    except ImportError:
        return False
    return True
