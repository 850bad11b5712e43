"""`toedit plan`: the memory and the time that a recipe's config takes."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..config import options
from ..errors import UnusableError, first_line


class Card(NamedTuple):
    """A GPU, by its data sheet: dense TFLOP/s, float32 without TF32."""

    memory_gib: float | None
    tflops_bf16: float
    tflops_fp32: float

    def seconds(self, flops: float, is_16_bit: bool, mfu: float) -> float:
        """The time of some operations at a share of the card's peak speed."""
        return flops / (1e12 * mfu * (self.tflops_bf16 if is_16_bit else self.tflops_fp32))


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
# Bytes of a quantized weight. With 4 bits there is a scale of 4 bytes for each 64 weights.
_QUANTIZED = {"4bit": 0.5 + 4 / 64, "8bit": 1.0, "int8": 1.0, "fp8": 1.0}
# Matrix products of the edit pass with the head, in passes of all scored tokens over the whole
# head, by the threshold of region="above". Measured with a prior of 10M weights on prose and chat
# (benchmarks/head_work.py). A low threshold selects more tokens, and each of them is drawn, too.
_HEAD_PASSES = ((0.01, 1.39), (0.1, 1.02), (0.5, 0.56), (0.9, 0.34), (0.99, 0.19), (0.999, 0.10))
_HEAD_PASSES_BELOW, _HEAD_PASSES_ALL = 1.1, 1.0
_EDIT_TILES = 2.5  # float32 tiles of logits that the edit pass has alive at once (counted)
# Apart from tensors: CUDA's context and libraries, and memory that the allocator cannot use.
_CONTEXT_GIB, _FRAGMENTS = 1.0, 0.05


class Sharding(NamedTuple):
    """How the trainee is divided: `kind` is one, ddp or sharded (FSDP, ZeRO-3)."""

    kind: str = "one"
    processes: int = 1


@dataclass(frozen=True)
class Plan:
    """The needs of one process of a run."""

    parameters: int  # of the trainee, adapters included
    trained: int
    bytes: dict[str, float]  # on one card, by part
    peak: float  # bytes in use at once, at most
    seconds: dict[str, float]  # of a step, by part
    tokens: int  # of a step, on all cards

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
    hardware.value("--mfu", mfu, "SHARE", options.number_above_0, 0.4)
    output = options.Group(parser, "output")
    output.value("--json", "write all figures", "FILE", Path)
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
    from ..data.files import write_json

    with quiet():
        run = read_run(args.config, args.overrides)
        sharding = read_sharding(args.accelerate, args.gpus, fsdp=bool(run.training.fsdp))
        try:
            plan = make_plan(run, CARDS[args.gpu], sharding, args.mfu)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            # No causal language model, other adapters, or it reads the values of a tensor.
            raise UnusableError(f"{run.name} cannot be counted ({first_line(error)})") from None
    print(format_plan(plan, run, args.gpu, sharding, args.mfu))
    if args.json is not None:
        record = {**asdict(plan), "needed_gib": plan.needed_gib, "gpu": args.gpu, "mfu": args.mfu}
        write_json(args.json, record, "--json")


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
        rows, batches = args.per_device_train_batch_size, args.gradient_accumulation_steps
        return rows, args.max_length, batches

    @property
    def is_packed(self) -> bool:
        """Whether a batch is one long row, with a mask between its documents."""
        args = self.training
        return args.padding_free or (args.packing and args.packing_strategy != "wrapped")


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
    if not run.training.max_length:
        raise UnusableError(
            f"max_length must be a number from 1 for a plan, got {run.training.max_length}"
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
    processes = gpus or int(values.get("num_processes", 1))
    kind = str(values.get("distributed_type", "NO")).upper()
    stage = (values.get("deepspeed_config") or {}).get("zero_stage")
    is_sharded = fsdp or kind == "FSDP" or (kind == "DEEPSPEED" and stage == 3)
    if not is_sharded and kind not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        what = kind if stage is None else f"{kind} with zero_stage {stage}"
        raise UnusableError(
            f"--accelerate {path}: the plan does not support distributed_type {what}; use NO, "
            "MULTI_GPU, FSDP, or DEEPSPEED with zero_stage 3"
        )
    if processes == 1:
        return Sharding()
    return Sharding("sharded" if is_sharded else "ddp", processes)


def make_plan(run: Run, card: Card, sharding: Sharding, mfu: float) -> Plan:
    """Count one batch on the meta device, and add up the parts.

    Raises:
        UnusableError: a model is unknown.
        NotImplementedError, RuntimeError, ValueError: a model cannot be counted.
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
    # Sharded float32 weights are gathered as 16-bit copies, and the model computes with those.
    is_sharded = sharding.kind == "sharded"
    mixed = autocast and is_sharded
    model = _empty_model(config, "bfloat16" if mixed else dtype)
    is_16_bit = autocast or _BYTES[dtype] == 2

    edit = _edit_pass(run, model, card) if run.policy is not None else _Edit()
    frozen = 0.0
    if run.model.use_peft:
        bits = "4bit" if run.model.load_in_4bit else "8bit" if run.model.load_in_8bit else None
        frozen = _weight_bytes(model, bits)
        model = _with_adapters(model, run.model, float32=bits is None and not mixed)
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    trained_bytes = float(sum(w.numel() * (4 if mixed else w.element_size()) for w in trained))
    states = _optimizer_states(args.optim.value)
    states *= _numel(trained) if "8bit" in args.optim.value else trained_bytes

    has_kernel = run.model.attn_implementation not in (None, "sdpa", "eager")
    long_row = run.is_packed and not has_kernel
    step = count_training(
        model, *((1, B * T) if long_row else (B, T)), autocast=autocast,
        checkpointing=args.gradient_checkpointing,
        with_mask=long_row or (B > 1 and not args.packing and not has_kernel),
    )  # fmt: skip
    share = 1 / sharding.processes if is_sharded else 1
    with_buckets = 2 if sharding.kind == "ddp" else 1
    parts = {
        "weights": share * (trained_bytes + frozen),
        "optimizer": share * states,
        "prior": edit.weights,
        "gradients": share * trained_bytes * with_buckets,
        "gathered": _gathered_bytes(model, 2 if is_16_bit else 4) if is_sharded else 0.0,
        "activations": float(step.peak),
        "edit pass": edit.peak,
    }
    always = sum(parts[name] for name in ("weights", "optimizer", "prior", "gradients"))
    seconds = {
        "training": batches * card.seconds(step.flops, is_16_bit, mfu),
        "edit pass": batches * card.seconds(edit.flops, edit.is_16_bit, mfu),
    }
    return Plan(
        parameters=_numel(weights),
        trained=_numel(trained),
        bytes=parts,
        peak=always + max(parts["gathered"] + parts["activations"], parts["edit pass"]),
        seconds=seconds,
        tokens=B * T * batches * sharding.processes,
    )


class _Edit(NamedTuple):
    """The edit pass of a batch: bytes of a separate prior, peak, and operations."""

    weights: float = 0.0
    peak: float = 0.0
    flops: float = 0.0
    is_16_bit: bool = True


def _edit_pass(run: Run, model: Any, card: Card) -> _Edit:
    """Count the prior's backbone, and estimate the work with its head."""
    from ..head.projection import MAX_BLOCK_BYTES_GPU, tile_elements
    from .counting import count_forward

    B, T, _ = run.rows_and_tokens
    prior, weights = model, 0.0
    if run.edit.prior != "shared":
        config, dtype = find_config(run.edit.prior, {}, field="prior")
        dtype = dtype if run.edit.prior_dtype == "auto" else run.edit.prior_dtype
        prior = _empty_model(config, dtype)
        weights = _weight_bytes(prior, run.edit.prior_quantization)
    counted, passes = count_forward(prior, B, T), head_passes(run.policy)
    head = prior.get_output_embeddings().weight
    (V, D), element = head.shape, head.element_size()
    device = torch.device("cpu" if card.memory_gib is None else "cuda")
    tiles = 4 * _EDIT_TILES * tile_elements(B * T, V, device)
    drawn = min(MAX_BLOCK_BYTES_GPU, passes * B * T * V * element)  # logits of rows, in blocks
    return _Edit(
        weights=weights,
        peak=max(float(counted.peak), 2 * B * T * D * element + tiles + drawn),
        flops=counted.flops + 2.0 * V * D * B * T * passes,
        is_16_bit=element == 2,
    )


def head_passes(policy: Any) -> float:
    """Work with the head, in passes of all scored tokens over the whole vocabulary."""
    if policy.region != "above":
        return _HEAD_PASSES_ALL if policy.region == "all" else _HEAD_PASSES_BELOW
    thresholds, passes = zip(*_HEAD_PASSES, strict=True)
    return float(np.interp(policy.threshold, thresholds, passes))


def find_config(name: str, overrides: dict[str, Any], *, field: str = "model") -> tuple[Any, str]:
    """The config of a model with some fields changed, and the dtype of its published weights.

    Raises:
        UnusableError: its config cannot be read; names the `field` of the run's config.
    """
    from transformers import AutoConfig

    from .known_models import KNOWN_MODELS

    known = (
        None if Path(name).is_dir() else KNOWN_MODELS.get(name.lower().removesuffix("-instruct"))
    )
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

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()


def _with_adapters(model: Any, settings: Any, *, float32: bool) -> Any:
    """LoRA as TRL adds it, in float32 or in the dtype of the weights."""
    from peft import get_peft_model
    from trl import get_peft_config

    dtype, config = model.dtype, get_peft_config(settings)
    assert config is not None
    with torch.device("meta"):
        model = get_peft_model(model, config)
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


def _optimizer_states(name: str) -> float:
    """Numbers that an optimizer keeps for each weight."""
    name = name.removeprefix("paged_")
    if name.startswith(("sgd", "adafactor")):  # Adafactor has one for each row and each column
        return 0.0
    return 1.0 if name.startswith(("lion", "rmsprop", "adagrad")) else 2.0


def _numel(weights: Any) -> int:
    return sum(weight.numel() for weight in weights)


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
        for name, value in {**plan.bytes, "peak": plan.peak}.items()
        if value
    ]
    if card.memory_gib is not None:
        verdict = "fits" if plan.needed_gib <= card.memory_gib else "DOES NOT FIT"
        lines.append(
            f"  {verdict}: {plan.needed_gib:.1f} of {card.memory_gib:g} GiB, with "
            f"{_FRAGMENTS:.0%} for fragments and {_CONTEXT_GIB:g} GiB for CUDA"
        )
    speed = f"{plan.tokens / step:,.0f} tokens/s on all cards"
    lines += ["", f"  {'a step':14}{duration(step):>12}  {speed}"]
    if run.policy is not None:
        seconds = plan.seconds["edit pass"]
        share = f"{seconds / step:.0%} of the step"
        lines.append(f"  {'the edit pass':14}{duration(seconds):>12}  {share}")
    if run.training.max_steps > 0:
        lines.append(f"  {'the run':14}{duration(step * run.training.max_steps):>12}")
    notes = [
        f"Counted on the meta device, not measured; times assume {mfu:.0%} of the card's peak "
        "(--mfu) and hidden communication."
    ]
    if run.is_packed:
        notes.append(
            "A batch is one packed row. Without a flash attention kernel (attn_implementation), "
            "it has a mask of all pairs of tokens."
        )
    if run.policy is not None and run.edit.cache_path:
        notes.append("With decision_cache, only the first epoch has an edit pass.")
    return "\n".join([*lines, "", *(row for note in notes for row in textwrap.wrap(note, 100))])


def duration(seconds: float) -> str:
    """A time as text.

    Example:
        >>> duration(0.0123), duration(4.56), duration(1e6)
        ('12 ms', '4.6 s', '11 days, 13:46:40')
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else str(timedelta(seconds=round(seconds)))
