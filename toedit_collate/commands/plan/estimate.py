"""The estimate: a recipe's config, a card and how many, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .activations import Setting
from .cards import Card
from .config import Lora, RunConfig, make_config, read_values
from .layers import Layers, layers_of
from .memory import (
    DTYPE_BYTES,
    Memory,
    Precision,
    PriorModel,
    dtype_name,
    plan_memory,
    precision_of,
    setting_of,
)
from .models import find_config
from .optimizers import is_known
from .parameters import Parameters, count_parameters
from .sharding import Sharding, read_sharding
from .times import Times, plan_times

# Beside tensors: CUDA's context and cuBLAS; and what the allocator can't use.
_CONTEXT_GIB = 1.0
_FRAGMENTS = 0.05


@dataclass(frozen=True)
class Estimate:
    """All that is estimated for a config.

    Attributes:
        run: the config.
        card: of each process.
        sharding: how many of them.
        mfu: share of the card's peak, assumed.
        counts: of the trainee.
        layers: its shape.
        prior: a model of its own; None: shared, or no editing.
        precision: of the trainee.
        setting: of its layers.
        memory: of one GPU.
        times: of a step.
        notes: what a reader should know of this one.
    """

    run: RunConfig
    card: Card
    sharding: Sharding
    mfu: float
    counts: Parameters
    layers: Layers
    prior: PriorModel | None
    precision: Precision
    setting: Setting
    memory: Memory
    times: Times
    notes: tuple[str, ...]

    @property
    def needed_gib(self) -> float:
        """The peak, and what lies beside tensors."""
        return self.memory.peak / 2**30 * (1 + _FRAGMENTS) + _CONTEXT_GIB

    @property
    def fits(self) -> bool | None:
        """Whether the card holds that; None: it is no card."""
        if self.card.memory_gib is None:
            return None
        return self.needed_gib <= self.card.memory_gib


def estimate(
    path: Path, card: Card, *, overrides: Sequence[str] = (), gpus: int | None = None,
    accelerate: Path | None = None, mfu: float = 0.4,
) -> Estimate:  # fmt: skip
    """Estimate the memory and the time of a recipe's config.

    Args:
        path: of the YAML.
        card: of each process.
        overrides: `--field value ...`.
        gpus: how many; None: as `accelerate` says, else 1.
        accelerate: its config.
        mfu: share of the card's peak that is reached.

    Raises:
        UnusableError: something of this can't be used.
    """
    run = make_config(read_values(path, overrides))
    return estimate_run(run, card, read_sharding(accelerate, gpus, fsdp=run.fsdp), mfu)


def estimate_run(run: RunConfig, card: Card, sharding: Sharding, mfu: float) -> Estimate:
    """The same of a config that is read already."""
    field = "config_name" if run.from_scratch else "model_name_or_path"
    counts, layers, dtype = _size(run.model, tuple(run.config_overrides.items()), run.lora, field)
    precision = precision_of(run, sharding, dtype)
    setting = setting_of(run, counts, precision, on_gpu=card.is_gpu)
    prior = _prior(run)
    return Estimate(
        run=run,
        card=card,
        sharding=sharding,
        mfu=mfu,
        counts=counts,
        layers=layers,
        prior=prior,
        precision=precision,
        setting=setting,
        memory=plan_memory(run, counts, layers, setting, precision, sharding, prior),
        times=plan_times(run, counts, layers, precision, sharding, prior, card, mfu),
        notes=tuple(_notes(run, layers, sharding, setting)),
    )


@lru_cache(maxsize=32)  # a dozen configs of one model
def _size(
    name: str, overrides: tuple[tuple[str, Any], ...], lora: Lora | None, field: str
) -> tuple[Parameters, Layers, str]:
    config = find_config(name, dict(overrides), field=field)
    dtype = dtype_name(config)  # before a model is made of it, which sets its own
    return count_parameters(config, lora), layers_of(config), dtype


def _prior(run: RunConfig) -> PriorModel | None:
    if run.prior in (None, "shared"):
        return None
    counts, layers, dtype = _size(str(run.prior), (), None, "prior")
    element = DTYPE_BYTES[dtype if run.prior_dtype == "auto" else run.prior_dtype]
    return PriorModel(counts, layers, element, run.prior_quantization)


def _notes(run: RunConfig, layers: Layers, sharding: Sharding, setting: Setting) -> list[str]:
    notes = []
    if not layers.is_known:
        notes.append("Activations are taken to be like Llama's; this family was not compared.")
    if not is_known(run.optimizer):
        notes.append(f"optim {run.optimizer} is not known here and counted as AdamW.")
    if run.optimizer.startswith("paged_"):
        notes.append("Paged optimizer states count in full; they may move to the host instead.")
    if run.quantization:
        notes.append(
            "Quantized weights: by their layout; neither bitsandbytes' buffers nor its time to "
            "dequantize are counted."
        )
    if run.packing == "free" and setting.mask_length:
        notes.append(
            "The rows of a batch are one row with a mask between documents, over all pairs of "
            "tokens; with a flash attention kernel there is none."
        )
    if run.prior == "shared" and sharding.kind in ("zero3",):
        notes.append("prior: shared is refused under ZeRO-3; name a prior of its own.")
    if run.packing == "none":
        notes.append("Rows are taken to be as long as max_length; shorter ones take less.")
    return notes
