"""Time of a step: floating-point operations, divided by what a card is assumed to reach."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .cards import Card
from .config import RunConfig
from .layers import Layers
from .memory import Precision, PriorModel
from .parameters import Parameters
from .sharding import Sharding

# Of the full vocabulary projection: what the edit pass computes of it. `toedit bench` found 6 to
# 25 % of the positions open to the end, prose to chat.
HEAD_SHARE = 0.15


@dataclass(frozen=True)
class Times:
    """Seconds, and what is done in them, on one GPU.

    Attributes:
        train: of a step, without editing.
        edit: of the edit pass of a step.
        tokens_per_step: on all GPUs.
        num_steps: of one training; None: not known without the data.
        total: seconds of the whole run, all its generations; None: not known without the data.
        edited_share: of the epochs that need a pass of the prior.
    """

    train: float
    edit: float
    tokens_per_step: int
    num_steps: int | None
    total: float | None
    edited_share: float

    @property
    def step(self) -> float:
        """Of a step with its edit pass."""
        return self.train + self.edit

    @property
    def tokens_per_second(self) -> float:
        """On all GPUs."""
        return self.tokens_per_step / self.step

    @property
    def edit_share(self) -> float:
        """Of the time of a step."""
        return self.edit / self.step


def forward_flops(layers: Layers, linear: int, length: int, *, halved: bool = True) -> float:
    """Of one token in the layers: two for each weight, and causal attention over a row."""
    attention = 4.0 * layers.L * layers.H * layers.d * length
    return 2.0 * linear + (attention / 2 if halved else attention)


def training_flops(
    run: RunConfig, counts: Parameters, layers: Layers, length: int, *, halved: bool
) -> float:
    """Of one token: forward, backward, and forward again where layers are checkpointed."""
    forward = forward_flops(layers, counts.linear, length, halved=halved)
    # Gradients of the inputs cost as much as a forward pass, those of the weights once more.
    passes = (2 if counts.targets else 3) + (1 if run.checkpointing else 0)
    head = 2.0 * counts.head
    heads = (3 if run.fused_head else 2) + (1 if counts.trains_head else 0)
    adapters = 2.0 * counts.adapters * (3 + (1 if run.checkpointing else 0))
    return passes * forward + heads * head + adapters


def plan_times(
    run: RunConfig, counts: Parameters, layers: Layers, precision: Precision, sharding: Sharding,
    prior: PriorModel | None, card: Card, mfu: float,
) -> Times:  # fmt: skip
    """Estimate a step, and the run."""
    length, halved = run.T, True
    if run.packing == "free" and run.attention in (None, "sdpa", "eager"):
        length, halved = run.B * run.T, False  # with a mask, all pairs of the row are computed
    tokens = run.B * run.T * run.accumulation
    speed = _flops_per_second(card, precision.compute, mfu)
    train = tokens * training_flops(run, counts, layers, length, halved=halved) / speed
    edit = 0.0
    if run.prior is not None:
        scored, linear, vocabulary = layers, counts.linear, counts.head
        if prior is not None:
            scored, linear, vocabulary = prior.layers, prior.counts.linear, prior.counts.head
            speed = _flops_per_second(card, prior.element, mfu)
        each = forward_flops(scored, linear, run.T) + 2.0 * HEAD_SHARE * vocabulary
        edit = tokens * each / speed
    num_steps = _num_steps(run, sharding)
    edited = 1 / max(1.0, run.num_epochs) if run.decides_once else 1.0
    total = None
    if num_steps is not None:
        total = run.generations * num_steps * (train + edit * edited)
    return Times(train, edit, tokens * sharding.num_gpus, num_steps, total, edited)


def _flops_per_second(card: Card, element: int, mfu: float) -> float:
    return 1e12 * mfu * (card.tflops_bf16 if element == 2 else card.tflops_fp32)


def _num_steps(run: RunConfig, sharding: Sharding) -> int | None:
    if run.max_steps is not None:
        return run.max_steps
    if run.num_rows is None or run.packing != "none":
        return None  # of packed rows, only the data knows how many there are
    rows = run.B * run.accumulation * sharding.num_gpus
    return math.ceil(math.ceil(run.num_rows / rows) * run.num_epochs)
