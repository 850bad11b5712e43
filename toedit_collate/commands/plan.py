"""`toedit plan`: the memory and the time that a recipe's config takes."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import options
from ..errors import UnusableError, first_line


class Card(NamedTuple):
    """A GPU, by its data sheet: dense TFLOP/s, float32 without TF32."""

    memory_gib: float | None
    tflops_bf16: float
    tflops_fp32: float

    def speed(self, element: int, mfu: float) -> float:
        """Operations per second on numbers of `element` bytes."""
        return 1e12 * mfu * (self.tflops_bf16 if element == 2 else self.tflops_fp32)


CARDS = {
    "h200": Card(140.4, 989.0, 67.0),
    "h100": Card(79.6, 989.0, 67.0),
    "a100-80gb": Card(80.0, 312.0, 19.5),
    "a100-40gb": Card(40.0, 312.0, 19.5),
    "l40s": Card(45.0, 362.0, 91.6),
    "rtx4090": Card(24.0, 165.2, 82.6),
    "rtx3090": Card(24.0, 71.0, 35.6),
    "l4": Card(22.5, 121.0, 30.3),
    "cpu": Card(None, 0.1, 0.1),  # two cores of a server, roughly
}
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Bytes of a quantized weight. bitsandbytes adds a scale for each 64 weights: 4 bytes, or 1 byte if
# the scales are quantized, too ("nested").
_QUANTIZED = {"4bit": 0.5 + 4 / 64, "4bit nested": 0.5 + 1 / 64, "8bit": 1.0, "int8": 1.0,
              "fp8": 1.0}  # fmt: skip
# Matrix products of the edit pass with the head, in passes of all scored tokens over the whole
# head, by the threshold of region="above". Measured with a prior of 10M weights on prose and chat
# (benchmarks/head_work.py). A low threshold selects more tokens, and each of them is drawn, too.
_HEAD_PASSES = ((0.999, 0.10), (0.99, 0.19), (0.9, 0.34), (0.5, 0.56), (0.1, 1.02), (0.01, 1.39))
_HEAD_PASSES_BELOW, _HEAD_PASSES_ALL = 1.1, 1.0
_EDIT_TILES = 2.5  # float32 tiles of logits that the edit pass has alive at once (counted)
# With many draws per label: uniforms, ids, ids with counts; and, for some rows at a time, bytes for
# each id of the chunk that a draw falls into.
_EDIT_DRAWS, _EDIT_CHUNK = 3, 16
# Apart from tensors: CUDA's context and libraries, and memory that the allocator cannot use.
_CONTEXT_GIB, _FRAGMENTS = 1.0, 0.05


@dataclass(frozen=True)
class Sharding:
    """How the trainee is divided: one, ddp, fsdp, zero1, zero2 or zero3."""

    kind: str = "one"
    processes: int = 1

    def divides(self, what: str) -> int:
        """Among how many processes "weights", "gradients" or "optimizer" are divided."""
        also = {"optimizer": ("zero1", "zero2"), "gradients": ("zero2",), "weights": ()}[what]
        return self.processes if self.kind in ("fsdp", "zero3", *also) else 1


@dataclass(frozen=True)
class Plan:
    """The needs of one process of a run.

    Attributes:
        bytes: by part, on one card.
        peak: bytes in use at once.
        seconds: of a step, by part.
        edit_flops: operations of the edit passes of a step, by part.
        tokens: of a step, on all cards.
        notes: assumptions.
    """

    parameters: int
    trained: int
    bytes: dict[str, float]
    peak: float
    seconds: dict[str, float]
    edit_flops: dict[str, float]
    tokens: int
    notes: list[str]

    @property
    def needed_gib(self) -> float:
        """The peak, with CUDA's context and fragments of memory."""
        return self.peak / 2**30 * (1 + _FRAGMENTS) + _CONTEXT_GIB


def add_plan(commands: Any) -> None:
    """Add `plan` to the subcommands of an argparse parser."""
    parser = options.add_command(
        commands,
        "plan",
        "estimate the memory and the time that a recipe's config takes",
        "Count the memory and the time of one training step of a config. The real model makes the "
        "step on PyTorch's meta device, which holds no data. Only the config of a model is "
        "downloaded.",
        "toedit plan --config sft_lora.yaml --gpu a100-80gb --max_length 4096",
        usage="toedit plan --config FILE.yaml [--field value ...] [options]",
        allow_abbrev=False,  # a field of the config must never be taken for an option
    )
    run = options.Group(
        parser, "run", "Any field of the config can be changed here: --field value."
    )
    run.value("--config", "YAML file of a recipe", "FILE", Path, required=True)
    run.value("--accelerate", "config of accelerate that starts the run", "FILE", Path)
    hardware = options.Group(parser, "hardware")
    cards = f"one of {', '.join(CARDS)}"
    hardware.option("--gpu", cards, "h100", choices=CARDS, metavar="NAME")
    gpus = "number of GPUs; default: as in --accelerate"
    hardware.value("--gpus", gpus, "N", options.positive)
    mfu = "share of the card's peak speed that the run reaches (assumed)"
    hardware.value("--mfu", mfu, "SHARE", options.share, 0.4)
    output = options.Group(parser, "output")
    output.value("--json", "write all figures; -: to stdout, without the table", "FILE")
    parser.set_defaults(run=run_plan)
    known = parser.parse_known_args

    def parse(args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Let fields of the config through."""
        namespace, namespace.overrides = known(args, namespace)
        return namespace, []

    parser.parse_known_args = parse


def run_plan(args: argparse.Namespace) -> None:
    """Count, and print.

    Raises:
        UnusableError: an argument or the config cannot be used.
    """
    from ..config.console import quiet
    from ..data.files import as_json, write_json

    with quiet():
        run = read_run(args.config, args.overrides)
        sharding = read_sharding(args.accelerate, args.gpus, fsdp=bool(run.training.fsdp))
        try:
            plan = make_plan(run, CARDS[args.gpu], sharding, args.mfu)
        except (NotImplementedError, RuntimeError) as error:  # the model reads values of a tensor
            raise UnusableError(
                f"{run.name}: a model of this family cannot be counted without its weights "
                f"({first_line(error)})"
            ) from None
    record = {**asdict(plan), "needed_gib": plan.needed_gib, "gpu": args.gpu, "mfu": args.mfu}
    if args.json == "-":
        print(as_json(record))
        return
    print(format_plan(plan, run, args.gpu, sharding, args.mfu))
    if args.json is not None:
        write_json(Path(args.json), record, "--json")


@dataclass(frozen=True)
class Run:
    """A recipe's config: TRL's dataclasses, ours, and the fields of recipes."""

    training: Any
    model: Any
    edit: Any
    others: dict[str, Any]

    @property
    def policy(self) -> Any:
        """None: no editing."""
        return self.edit.policy()

    @property
    def name(self) -> str:
        """The trainee: `config_name` if it is trained from scratch."""
        return str(self.others.get("config_name") or self.model.model_name_or_path)

    @property
    def rows_and_tokens(self) -> tuple[int, int, int]:
        """Rows of a batch, tokens of a row, and batches of a step."""
        args = self.training
        fields = ("per_device_train_batch_size", "max_length", "gradient_accumulation_steps")
        for field in fields:
            value = getattr(args, field)
            if not isinstance(value, int) or value < 1:
                raise UnusableError(
                    f"{field} must be a whole number from 1 for a plan, got {value}"
                )
        return tuple(getattr(args, field) for field in fields)  # type: ignore[return-value]


def read_run(path: Path, overrides: Sequence[str] = ()) -> Run:
    """Read a config as the recipes do. `overrides` are options of the command line.

    Raises:
        UnusableError: the file or a value cannot be used.
    """
    from ..config.arguments import EditArguments
    from ..config.fields import read_fields, read_yaml
    from ..config.parse import check_names
    from ..config.priors import check_shared
    from .recipes import fields_of_recipes

    try:
        from trl import ModelConfig, SFTConfig, TrlParser
    except ImportError:
        raise UnusableError(
            'the plan reads configs with TRL; pip install "toedit_collate[recipes]"'
        ) from None
    read_yaml(path, "--config")  # for its messages
    classes: Any = [SFTConfig, ModelConfig, EditArguments]
    parser: Any = TrlParser(classes, prog="toedit plan", usage="")
    given = ["--config", str(path), *overrides, "--use_cpu", "true"]
    try:
        training, model, edit, rest = parser.parse_args_and_config(
            given, return_remaining_strings=True
        )
        run = Run(training, model, edit, read_fields(rest))
    except (OSError, TypeError, ValueError, UnusableError) as error:
        raise UnusableError(f"--config {path}: {first_line(error)}") from None
    known = {word.lstrip("-") for one in parser._actions for word in one.option_strings}
    check_names(run.others, known | fields_of_recipes())
    if run.name == "None":
        raise UnusableError(
            "the config names no model; set model_name_or_path, or config_name to train from "
            "scratch, to a folder or a hub id"
        )
    check_shared(run.edit, run.model.use_peft)
    return run


def read_sharding(path: Path | None, gpus: int | None, *, fsdp: bool = False) -> Sharding:
    """The sharding in a config of accelerate. `gpus` replaces its `num_processes`.

    Raises:
        UnusableError: the file cannot be used.
    """
    from ..config.fields import read_yaml

    values = {} if path is None else read_yaml(path, "--accelerate")
    number = gpus or int(values.get("num_processes", 1))
    kind = str(values.get("distributed_type", "NO")).upper()
    if fsdp or kind == "FSDP":
        return Sharding("fsdp", number) if number > 1 else Sharding()
    if kind == "DEEPSPEED":
        stage = (values.get("deepspeed_config") or {}).get("zero_stage", 0)
        return Sharding(f"zero{stage}" if stage else "ddp", number)
    if kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return Sharding("ddp", number) if number > 1 else Sharding()
    raise UnusableError(
        f"--accelerate {path}: distributed_type {kind} is not supported by the plan; use NO, "
        "MULTI_GPU, FSDP or DEEPSPEED"
    )


def make_plan(run: Run, card: Card, sharding: Sharding, mfu: float) -> Plan:
    """Count one step on the meta device, and add up the parts.

    Raises:
        UnusableError: a model is unknown, or cannot be counted.
    """
    from ..config.arguments import spread_batch
    from .counting import count_training

    args = run.training
    spread_batch(args, run.others.get("global_batch_size"), sharding.processes)
    B, T, batches = run.rows_and_tokens
    autocast = bool(args.bf16 or args.fp16)
    config, dtype = find_config(run.name, run.others.get("config_overrides") or {})
    if run.model.dtype not in (None, "auto") and "config_name" not in run.others:
        dtype = run.model.dtype
    # FSDP computes with 16-bit copies of float32 weights. DeepSpeed keeps 16-bit weights, and
    # float32 weights with its optimizer, and uses no autocast.
    mixed = autocast and sharding.kind not in ("one", "ddp")
    stored = 4 if mixed and sharding.kind == "fsdp" else None
    masters = 4 if mixed and stored is None else 0
    model = _empty_model(config, "bfloat16" if mixed else dtype)
    element = 2 if autocast else _BYTES[dtype]

    on_gpu = card.memory_gib is not None
    edit = _edit_pass(run, model, on_gpu) if run.policy is not None else _Edit()
    nested = " nested" if run.model.use_bnb_nested_quant else ""
    quantization = f"4bit{nested}" if run.model.load_in_4bit else None
    quantization = "8bit" if run.model.load_in_8bit else quantization
    frozen = _weight_bytes(model, quantization)
    if run.model.use_peft:
        model = _with_adapters(model, run.model, float32=not quantization and not mixed)
    trained = [p for p in model.parameters() if p.requires_grad]
    trained_bytes = float(sum(p.numel() * (stored or p.element_size()) for p in trained))
    states = sum(_optimizer_bytes(args.optim.value, p, stored or masters) for p in trained)

    mask = _mask_length(run, B, T)
    step = count_training(
        model, B, T, batches=batches, autocast=autocast and not masters,
        checkpointing=args.gradient_checkpointing, mask_length=mask,
        fused_head=not args.label_smoothing_factor,
        gradient_share=1 / sharding.divides("gradients"), on_gpu=on_gpu,
    )  # fmt: skip
    gradients = trained_bytes / sharding.divides("gradients")
    parts = {
        "weights": (trained_bytes + (frozen if run.model.use_peft else 0))
        / sharding.divides("weights"),
        "optimizer": (states + masters * _numel(trained)) / sharding.divides("optimizer"),
        "prior": edit.weights,
        "gathered": _gathered_bytes(model, element) if sharding.divides("weights") > 1 else 0.0,
        "gradients": gradients * (2 if sharding.kind == "ddp" else 1),  # and DDP's buckets
        "activations": max(0.0, step.peak - gradients),
        "draws": edit.draws,
        "edit pass": edit.peak,
    }
    always = sum(parts[name] for name in ("weights", "optimizer", "prior", "gradients", "draws"))
    always -= gradients  # the peak of the step has them
    return Plan(
        parameters=_numel(model.parameters()),
        trained=_numel(trained),
        bytes=parts,
        peak=always + max(parts["gathered"] + step.peak, gradients, edit.peak),
        seconds={
            "training": step.flops / card.speed(element, mfu),
            "edit pass": (edit.backbone + edit.head) / card.speed(edit.element, mfu),
        },
        edit_flops={"backbone": edit.backbone, "head": edit.head},
        tokens=B * T * batches * sharding.processes,
        notes=_notes(run, sharding, mask),
    )


@dataclass(frozen=True)
class _Edit:
    """The edit passes of a step: bytes of a separate prior, peak, draws; operations by part."""

    weights: float = 0.0
    peak: float = 0.0
    draws: float = 0.0
    backbone: float = 0.0
    head: float = 0.0
    element: int = 2


def _edit_pass(run: Run, model: Any, on_gpu: bool) -> _Edit:
    """Count the prior's backbone, and estimate the work with its head."""
    from ..head.candidates import CHUNK
    from ..head.projection import (
        MAX_BLOCK_BYTES,
        MAX_BLOCK_BYTES_GPU,
        MAX_TILE_ELEMENTS_GPU,
        PIECE_ELEMENTS,
        tile_elements,
    )
    from .counting import count_forward

    B, T, batches = run.rows_and_tokens
    prior, weights = model, 0.0
    if run.edit.prior != "shared":
        config, dtype = find_config(run.edit.prior, {}, field="prior")
        dtype = dtype if run.edit.prior_dtype == "auto" else run.edit.prior_dtype
        prior = _empty_model(config, dtype)
        weights = _weight_bytes(prior, run.edit.prior_quantization)
    counted, passes = count_forward(prior, B, T), head_passes(run.policy)
    head = prior.get_output_embeddings().weight
    (V, D), element = head.shape, head.element_size()
    tiles = 4 * _EDIT_TILES * tile_elements(B * T, V, torch.device("cuda" if on_gpu else "cpu"))
    # Logits of the rows that are drawn, in blocks.
    block = MAX_BLOCK_BYTES_GPU if on_gpu else MAX_BLOCK_BYTES
    block = min(block, int(passes * B * T * V * element))
    # With many draws per label: ids and counts of each, four bytes per number.
    draws = 8 * B * T * run.policy.num_draws if run.policy.num_draws > 1 else 0
    piece = min(B * T, max(1, (MAX_TILE_ELEMENTS_GPU if on_gpu else PIECE_ELEMENTS) // V))
    drawing = _EDIT_DRAWS * draws + bool(draws) * (
        _EDIT_CHUNK * CHUNK * piece * run.policy.num_draws
    )
    return _Edit(
        weights=weights,
        peak=max(counted.peak, 2 * B * T * D * element + tiles + block + drawing),
        draws=float(draws * batches),  # all batches of a step are edited before the first is used
        backbone=float(counted.flops * batches),
        head=2.0 * V * D * B * T * batches * passes,
        element=element,
    )


def head_passes(policy: Any) -> float:
    """Work with the head, in passes of all scored tokens over the whole vocabulary."""
    if policy.region != "above":
        return _HEAD_PASSES_ALL if policy.region == "all" else _HEAD_PASSES_BELOW
    thresholds, passes = zip(*reversed(_HEAD_PASSES), strict=True)
    return float(np.interp(policy.threshold, thresholds, passes))


def find_config(name: str, overrides: dict[str, Any], *, field: str = "model") -> tuple[Any, str]:
    """The config of a model, and the dtype of its published weights.

    Args:
        name: folder or hub id.
        overrides: fields of the config to change.
        field: that names the model, for the error.

    Raises:
        UnusableError: its config cannot be read.
    """
    from transformers import AutoConfig

    from .known_models import KNOWN_MODELS

    known = None if Path(name).is_dir() else KNOWN_MODELS.get(name.lower())
    try:
        if known is None:
            config = AutoConfig.from_pretrained(name, **overrides)
        else:
            settings = dict(known)
            kind = settings.pop("model_type")
            names = AutoConfig.for_model(kind).attribute_map  # num_hidden_layers -> n_layer
            settings = {names.get(k, k): value for k, value in {**settings, **overrides}.items()}
            config = AutoConfig.for_model(kind, **settings)
    except Exception as error:  # its class depends on the value that is wrong
        raise UnusableError(
            f"{field} {name}: its config cannot be read ({first_line(error)}); name a folder with "
            f"a config.json, a hub id, or one of {', '.join(KNOWN_MODELS)}"
        ) from None
    dtype = str(config.dtype or "float32").removeprefix("torch.")
    return config, dtype if dtype in _BYTES else "float32"


def _empty_model(config: Any, dtype: str) -> Any:
    """A model on the meta device."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    except ValueError as error:
        raise UnusableError(
            f"{config.model_type} is not a type of causal language models ({first_line(error)})"
        ) from None


def _with_adapters(model: Any, options: Any, *, float32: bool) -> Any:
    """LoRA as TRL adds it, in float32 or in the dtype of the weights."""
    from peft import get_peft_model
    from trl import get_peft_config

    dtype, config = model.dtype, get_peft_config(options)
    assert config is not None
    try:
        with torch.device("meta"):
            model = get_peft_model(model, config)
    except ValueError as error:
        raise UnusableError(
            f"lora_target_modules {options.lora_target_modules}: {first_line(error)}"
        ) from None
    for weight in model.parameters():
        if weight.requires_grad and not float32:
            weight.data = weight.data.to(dtype)
    return model


def _weight_bytes(model: Any, quantization: str | None) -> float:
    """Bytes of frozen weights. Matrices in layers are quantized; embeddings and head are not."""
    outside = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    return sum(
        p.numel() * _QUANTIZED[quantization]
        if quantization and p.ndim == 2 and id(p) not in outside
        else p.numel() * p.element_size()
        for p in model.parameters()
    )


def _gathered_bytes(model: Any, element: int) -> float:
    """What FSDP and ZeRO-3 gather: two layers, and everything outside of the layers."""
    names = tuple(getattr(model, "_no_split_modules", None) or ())
    layers = [_numel(m.parameters()) for m in model.modules() if type(m).__name__ in names]
    outside = _numel(model.parameters()) - sum(layers)
    return float(element * (outside + 2 * max(layers, default=0)))


def _optimizer_bytes(name: str, weight: Tensor, element: int) -> float:
    """Optimizer states of one weight. `element`: bytes of a number; 0: those of the weight."""
    count, element = weight.numel(), element or weight.element_size()
    name = name.removeprefix("paged_")
    if name.startswith("sgd"):
        return 0.0
    if name.startswith("adafactor") and weight.ndim > 1:
        return 4.0 * (count // weight.shape[-1] + count // weight.shape[-2])
    states = 1 if name.startswith(("lion", "rmsprop", "adagrad", "adafactor")) else 2
    return states * count * ((1 + 4 / 256) if "8bit" in name else element)


def _mask_length(run: Run, B: int, T: int) -> int:
    """Tokens in a row of the attention mask; 0: there is no mask."""
    args = run.training
    if run.model.attn_implementation not in (None, "sdpa", "eager"):
        return 0
    if args.padding_free or (args.packing and args.packing_strategy != "wrapped"):
        return B * T  # one long row, with a mask between documents
    return 0 if args.packing or B == 1 else T


def _numel(weights: Any) -> int:
    return sum(weight.numel() for weight in weights)


def _notes(run: Run, sharding: Sharding, mask: int) -> list[str]:
    edits = run.policy is not None
    notes = {
        "Quantized weights: without bitsandbytes' buffers and time to dequantize.": (
            run.model.load_in_4bit or run.model.load_in_8bit
        ),
        "A batch is one packed row, and its attention mask covers all pairs of tokens. A flash "
        "attention kernel (attn_implementation) needs no mask.": mask > run.training.max_length,
        "With decision_cache, only the first epoch has an edit pass.": (
            edits and run.edit.cache_path
        ),
        "A shared prior does not work under ZeRO-3; name a prior of its own.": (
            edits and run.edit.prior == "shared" and sharding.kind == "zero3"
        ),
    }
    return [note for note, applies in notes.items() if applies]


def format_plan(plan: Plan, run: Run, gpu: str, sharding: Sharding, mfu: float) -> str:
    """The plan as a table."""
    card = CARDS[gpu]
    B, T, batches = run.rows_and_tokens
    unit, size = ("GiB", 2**30) if plan.peak >= 2**30 else ("MiB", 2**20)
    step = sum(plan.seconds.values())
    what = {"optimizer": run.training.optim.value, "prior": run.edit.prior}
    spread = f", {sharding.kind}" if sharding.processes > 1 else ""
    lines = [
        f"{run.name}: {plan.parameters:,} parameters, {plan.trained:,} trained",
        f"{sharding.processes} x {gpu}{spread}; {B} rows of {T} tokens on each, "
        f"{batches} batch{'es' * (batches > 1)} to a step",
        "",
        f"{'':16}{unit + ' on each':>12}",
    ]
    lines += [
        f"  {name:14}{value / size:12,.2f}  {what.get(name, '')}".rstrip()
        for name, value in plan.bytes.items()
        if value
    ]
    lines.append(f"  {'peak':14}{plan.peak / size:12,.2f}")
    if card.memory_gib is not None:
        verdict = "fits" if plan.needed_gib <= card.memory_gib else "DOES NOT FIT"
        lines.append(
            f"  {verdict}: {plan.needed_gib:.1f} of {card.memory_gib:g} GiB, with "
            f"{_FRAGMENTS:.0%} for fragments and {_CONTEXT_GIB:g} GiB for CUDA"
        )
    lines += [
        "",
        f"  {'a step':14}{duration(step):>12}  {plan.tokens / step:,.0f} tokens/s on all cards",
    ]
    if run.policy is not None:
        head = plan.edit_flops["head"] / sum(plan.edit_flops.values())
        lines.append(
            f"  {'the edit pass':14}{duration(plan.seconds['edit pass']):>12}  "
            f"{plan.seconds['edit pass'] / step:.0%} of the step; {head:.0%} of it in the head"
        )
    if run.training.max_steps > 0:
        lines.append(f"  {'the run':14}{duration(step * run.training.max_steps):>12}")
    notes = [
        f"Counted on the meta device, not measured; times assume {mfu:.0%} of the card's peak "
        "(--mfu) and hidden communication.",
        *plan.notes,
    ]
    return "\n".join([*lines, "", *(row for note in notes for row in textwrap.wrap(note, 100))])


def duration(seconds: float) -> str:
    """A time as text.

    Example:
        >>> duration(0.0123), duration(4.56), duration(500), duration(9000), duration(1e6)
        ('12 ms', '4.6 s', '8.3 min', '2.5 h', '11.6 days')
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"
