"""Memory of one GPU: the parts, and the moments of a step at which they come together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .activations import (
    Setting,
    backward_bytes,
    final_bytes,
    forward_bytes,
    input_bytes,
    layer_bytes,
)
from .config import RunConfig
from .head import edit_head_bytes, loss_bytes
from .layers import Layers
from .optimizers import optimizer_bytes
from .parameters import Parameters
from .sharding import Sharding

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Bytes of a weight, with what scales them: one in float32 for 64 weights (bitsandbytes, 4 bits),
# these in 8 bits with one for 256 of them (nested), or one for a row (taken as none).
_QUANTIZED = {"4bit": 0.5625, "4bit nested": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
_QUANTIZED |= {"int8": 1.0, "fp8": 1.0}


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        parts: by name, in the order of the table.
        moments: what is in use at once, by when; the largest is the peak.
        saved: what the backward pass of one batch needs, without what it computes again.
    """

    parts: dict[str, float]
    moments: dict[str, float]
    saved: float

    @property
    def peak(self) -> float:
        """The most that is in use at once."""
        return max(self.moments.values())

    @property
    def peak_moment(self) -> str:
        """When that is."""
        return max(self.moments, key=lambda name: self.moments[name])


@dataclass(frozen=True)
class Precision:
    """Bytes of an element.

    Attributes:
        weights: of those that are not trained or quantized, as they lie in memory.
        trained: of a trained weight.
        residual: of the states between layers.
        compute: of matrix products.
        masters: of a copy that DeepSpeed's optimizer keeps of a trained weight.
    """

    weights: int
    trained: int
    residual: int
    compute: int
    masters: int = 0


def precision_of(run: RunConfig, sharding: Sharding, checkpoint: str) -> Precision:
    """Which dtypes TRL, peft and accelerate end up with.

    Args:
        run: the config.
        sharding: FSDP keeps trained weights in float32, DeepSpeed in 16 bits beside a copy.
        checkpoint: the dtype of the published weights.
    """
    dtype = checkpoint if run.from_scratch or run.dtype == "auto" else run.dtype
    weights = DTYPE_BYTES[dtype]
    trained = weights
    if run.lora is not None:  # peft keeps adapters in float32, TRL on a quantized base in bf16
        zero3 = sharding.kind == "zero3"
        trained = 2 if run.quantization else weights if zero3 else 4
    residual = weights
    masters = 0
    if sharding.num_gpus > 1 and run.autocast:
        if sharding.kind == "fsdp":
            trained, residual = 4, 2
        elif sharding.is_deepspeed:
            trained, weights, residual, masters = 2, 2, 2, 4
    return Precision(weights, trained, residual, 2 if run.autocast else residual, masters)


def setting_of(
    run: RunConfig, counts: Parameters, precision: Precision, *, on_gpu: bool
) -> Setting:
    """How the layers are trained."""
    eager = run.attention == "eager"
    has_mask = run.attention in (None, "sdpa", "eager")
    # Padded rows, or one row with all documents of the batch, have a mask. Full rows have none.
    length = {"none": run.T if run.B > 1 else 0, "wrapped": 0, "free": run.B * run.T}[run.packing]
    return Setting(
        residual=precision.residual,
        compute=precision.compute,
        autocast=run.autocast,
        trains_body=run.lora is None,
        targets=counts.targets,
        rank=run.lora.rank if run.lora else 0,
        dropout=bool(run.lora and run.lora.dropout),
        adapter=precision.trained,
        casts_to_adapter=run.quantization is None,
        mask_length=(length or (run.T if eager else 0)) if has_mask else 0,
        eager=eager,
        on_gpu=on_gpu,
    )


def model_bytes(counts: Parameters, element: float, quantization: str | None) -> float:
    """Weights of a model that is not trained."""
    quantized = counts.linear if quantization else 0
    return (counts.total - quantized) * element + quantized * _QUANTIZED.get(quantization or "", 0)


@dataclass(frozen=True)
class PriorModel:
    """A prior of its own: its size, and bytes of an element."""

    counts: Parameters
    layers: Layers
    element: int
    quantization: str | None


def plan_memory(
    run: RunConfig, counts: Parameters, layers: Layers, how: Setting, precision: Precision,
    sharding: Sharding, prior: PriorModel | None,
) -> Memory:  # fmt: skip
    """Add up what lies in memory at each moment of a step."""
    tokens = run.B * run.T
    divided = sharding.num_gpus
    weights = _weight_bytes(run, counts, precision)
    weights /= divided if sharding.divides_weights else 1
    gradients = float(counts.trainable * precision.trained)
    gradients /= divided if sharding.divides_gradients else 1
    buckets = gradients if sharding.kind == "ddp" and divided > 1 else 0.0  # DDP's, from the start
    element = 4 if precision.masters else precision.trained
    states = optimizer_bytes(run.optimizer, counts.trained_shapes, element)
    states += counts.trainable * precision.masters
    states /= divided if sharding.divides_optimizer else 1
    gathered = _gathered_bytes(counts, layers, precision, sharding)

    saved, working, casts = _activation_bytes(run, counts, layers, how, sharding)
    saved, working = saved * tokens, working * tokens
    if how.mask_length:
        working += tokens * how.mask_length  # the mask itself, a byte for each pair
    kept, in_forward, in_backward = loss_bytes(run, counts, layers, precision, on_gpu=how.on_gpu)
    saved += kept + (0.0 if run.checkpointing else casts)
    prior_weights = 0.0
    edit = 0.0
    if prior is not None:
        prior_weights = model_bytes(prior.counts, prior.element, prior.quantization)
    if run.prior is not None:
        edit = _edit_bytes(tokens, layers, how, prior)

    always = weights + states + prior_weights + buckets
    before = gradients if run.accumulation > 1 else 0.0  # those of the step's batches so far
    head = counts.head * precision.trained if counts.trains_head else 0.0
    working_casts = casts / layers.L if run.checkpointing else 0.0
    moments = {
        "edit pass": always + edit + (gathered if run.prior == "shared" else 0.0),
        "end of the forward pass": always + gathered + before + saved + in_forward
        + (casts if run.checkpointing and run.lora is None else 0.0),
        "backward pass of the loss": always + gathered + before + saved + in_backward,
        "backward pass of the last layer": always + gathered + max(before, head) + saved
        + working + working_casts,
        "end of the backward pass": always + gathered + gradients + working + working_casts,
        "optimizer step": always + gradients,
    }  # fmt: skip
    if run.prior is None:
        del moments["edit pass"]
    parts = {
        "weights": weights,
        "gradients": gradients + buckets,
        "optimizer": states,
        "gathered": gathered,
        "activations": saved - kept + working + working_casts,
        "loss": kept + max(in_forward, in_backward),
        "prior": prior_weights,
        "edit pass": edit,
    }
    return Memory({name: float(value) for name, value in parts.items()}, moments, saved)


def _weight_bytes(run: RunConfig, counts: Parameters, precision: Precision) -> float:
    quantized = counts.linear if run.quantization else 0
    frozen = counts.total - counts.trainable - quantized
    total = frozen * precision.weights + counts.trainable * precision.trained
    return total + quantized * _QUANTIZED.get(run.quantization or "", 0)


def _gathered_bytes(
    counts: Parameters, layers: Layers, precision: Precision, sharding: Sharding
) -> float:
    """Whole weights of two layers and of what lies outside them, and their gradients."""
    if not sharding.divides_weights:
        return 0.0
    outside = counts.total - counts.body - (0 if not counts.targets else counts.adapters)
    body = counts.body * (1.0 if sharding.keeps_gathered else min(1.0, 2 / layers.L))
    trained = outside + counts.body / layers.L if not counts.targets else 0.0
    return (outside + body + trained) * precision.compute


def _activation_bytes(
    run: RunConfig, counts: Parameters, layers: Layers, how: Setting, sharding: Sharding
) -> tuple[float, float, float]:
    """Saved and working bytes of a token, and bytes of weights that autocast casts."""
    one = sum(layer_bytes(layers, how).values())
    end = final_bytes(layers, how)
    whole = sharding.divides_weights or (sharding.is_deepspeed and sharding.num_gpus > 1)
    casts = 0.0
    if how.autocast and how.residual > how.compute and not whole and run.quantization is None:
        casts = float(counts.linear * how.compute)
    if run.checkpointing:
        return layers.L * input_bytes(layers, how) + end, one + backward_bytes(layers, how), casts
    if how.targets and how.adapter > how.compute:
        casts += counts.adapters * how.compute
    return layers.L * one + end, backward_bytes(layers, how), casts


def _edit_bytes(tokens: int, layers: Layers, how: Setting, prior: PriorModel | None) -> float:
    """The trunk of the prior, or then its states and the head's tiles."""
    scored = layers if prior is None else prior.layers
    element = how.residual if prior is None else prior.element
    compute = how.compute if prior is None else prior.element
    without = Setting(residual=element, compute=compute, autocast=False)
    trunk = tokens * forward_bytes(scored, without)
    states = 2 * tokens * scored.D * element
    return max(trunk, states + edit_head_bytes(tokens, scored.V, on_gpu=how.on_gpu))


def dtype_name(config: Any) -> str:
    """The dtype of a model's published weights."""
    name = str(getattr(config, "dtype", None) or _of_weights(config)).removeprefix("torch.")
    return name if name in DTYPE_BYTES else "float32"


def _of_weights(config: Any) -> str:
    """The dtype of the first weight in a folder, which transformers' "auto" takes, too."""
    from safetensors import safe_open

    folder = Path(getattr(config, "_name_or_path", "") or "none")
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no dict
                return {"BF16": "bfloat16", "F16": "float16"}.get(
                    weights.get_slice(name).get_dtype(), "float32"
                )
    return "float32"
