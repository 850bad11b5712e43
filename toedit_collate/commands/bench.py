"""`toedit bench`: what editing costs on this machine, as ratios within one run."""

from __future__ import annotations

import argparse
import copy
import gc
import os
import platform
import random
import shlex
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import options
from ..errors import UnusableError
from .counting import LiveMemory

if TYPE_CHECKING:
    from ..data import Data
    from ..policy import EditPolicy
    from ..prior.prior import Prior

Batch = dict[str, Any]
"""input_ids, attention_mask and labels: (B, T) int64 on the CPU, padded on the right."""
Variant = Callable[[int], object]
"""What is timed: a function of the number of the round. Its result is ignored."""
Row = dict[str, Any]
"""One line of a table: `name`, and figures by column."""

BACKBONE = "bare backbone"
EDIT = "edit"
CACHED = "edit, a later epoch from the decision cache"
SOFTMAX = "full softmax in plain PyTorch, no draws"
DENSE_KL = "dense KL to the prior, instead of an edit"
_NUM_BATCHES = 8
_LEAST_ROUNDS = 5
_SECONDS = 40.0  # per table; then `_LEAST_ROUNDS` are enough
_LEARNING_RATE = 1e-6  # weights should hardly move: all steps must cost the same


def add_bench(commands: Any) -> None:
    """Add `bench` to the subcommands of an argparse parser."""
    parser = options.add_command(
        commands,
        "bench",
        "measure what editing costs on this machine, as ratios within one run",
        "Measure what editing costs with your prior, text and policy: the edit of a batch compared "
        "with one forward pass of the prior's backbone, a full softmax and a dense KL term; its "
        "memory; and a training step with and without editing. Compare ratios, not times, between "
        "machines. Without --prior and --data: the small model and text of toedit-demo.",
        "toedit bench --prior Qwen/Qwen2.5-0.5B --data chats.jsonl --policy distill",
    )
    data = options.add_data(parser)
    data.value("--batch-size", "rows of a batch", "N", options.positive, 8)
    data.value("--max-length", "tokens of a row, at most", "N", options.positive, 512)
    options.add_prior(parser, aligned=False)
    policy = options.Group(parser, "policy")
    options.add_policy(policy)
    options.add_seed(policy, "batches and draws")
    measuring = options.Group(parser, "measuring")
    rounds = "how often to time each variant; at least 5, even if that takes long"
    measuring.value("--rounds", rounds, "N", options.positive, 11)
    measuring.flag("--no-training", "leave out the training steps")
    measuring.value(
        "--threads",
        "of a CPU; with one, times are processor time, which other programs disturb less",
        "N",
        options.positive,
        1,
    )
    measuring.value("--json", "write all figures", "FILE", Path)
    parser.set_defaults(run=run_bench)


def run_bench(args: argparse.Namespace) -> None:
    """Measure, and print the report.

    Raises:
        UnusableError: an argument cannot be used.
    """
    from ..config.console import quiet
    from ..config.priors import open_prior
    from ..data import open_data
    from ..data.demo_text import DEMO
    from ..data.files import write_json

    if (args.prior is None) != (args.data is None):
        raise UnusableError("--prior and --data belong together: a model and text for it; add both")
    policy = options.read_policy(args.policy, seed=args.seed)
    torch.set_num_threads(args.threads)
    with quiet():
        name, data = args.prior or DEMO, open_data(args.data or DEMO, args.split)
        prior = open_prior(name, needs_tokenizer=False, **options.prior_options(args))
        T = min(args.max_length, prior.max_length or args.max_length)
        facts = {
            "command": shlex.join(["toedit", *sys.argv[1:]]),
            "prior": name,
            "policy": args.policy,
            **machine_facts(prior.device, prior.model.dtype),
        }
        report = {"facts": facts}
        print("\n".join(f"{name:14}  {value}" for name, value in facts.items()), flush=True)
        # A training step takes long on a CPU.
        few = min(2, args.batch_size) if prior.device.type == "cpu" else args.batch_size
        sections = [
            ("edit", measure_edit, args.batch_size),
            ("training", measure_training, few),
        ]
        for section, measure, B in sections[: 1 if args.no_training else 2]:
            inputs = read_inputs(prior, data, B=B, T=T, seed=args.seed)
            report[section] = measure(inputs, policy, rounds=args.rounds)
            print(format_table(report[section]), flush=True)
    if args.json is not None:
        write_json(args.json, report, "--json")


# What is measured


@dataclass(frozen=True)
class Inputs:
    """A prior and batches for it: B rows of up to T tokens."""

    prior: Prior
    batches: list[Batch]
    B: int
    T: int

    @property
    def trunk(self) -> Any:
        """The prior's backbone, without its vocabulary projection."""
        from ..prior.families import find_trunk, unwrap_model

        return find_trunk(unwrap_model(self.prior.model))

    def batch(self, number: int) -> Batch:
        """The batch of a round."""
        return self.batches[number % len(self.batches)]

    def on_device(self, number: int) -> Batch:
        """The batch of a round, on the prior's device."""
        return {key: value.to(self.prior.device) for key, value in self.batch(number).items()}


def read_inputs(prior: Prior, data: Data, *, B: int, T: int, seed: int) -> Inputs:
    """Up to eight batches of text; long documents are cut into windows of T tokens.

    Raises:
        UnusableError: the data cannot be read, or there is too little.
    """
    from ..data import Preparation, examples
    from ..inspection.reading import as_token_batch

    found = examples(data, prior.tokenizer, Preparation(max_length=T), vocab_size=prior.vocab_size)
    # Skip the short last window of a long document, to have less padding.
    full = (one for one in found if len(one.ids) > 1 and (not one.start or len(one.ids) == T))
    pieces = list(islice(full, 4 * _NUM_BATCHES * B))
    if len(pieces) < B:
        raise data.error(
            f"gives {len(pieces)} pieces of up to {T} tokens, and a batch takes {B}; add text, or "
            "use a smaller --batch-size"
        )
    if all(label == -100 for one in pieces for label in one.labels[1:]):
        raise data.error("no token has a label other than -100, so none is edited; fix the labels")
    random.Random(seed).shuffle(pieces)
    number = min(_NUM_BATCHES, len(pieces) // B)
    padded = [as_token_batch(pieces[n * B : (n + 1) * B]) for n in range(number)]
    batches = [
        {"input_ids": one.input_ids, "attention_mask": one.mask, "labels": one.labels}
        for one in padded
    ]
    return Inputs(prior, batches, B, T)


def measure_edit(
    inputs: Inputs, policy: EditPolicy, *, rounds: int, more: Mapping[str, Variant] | None = None
) -> Row:
    """A table: time and memory of a batch's edit and its alternatives, compared with the backbone.

    `more` has other variants to time, by name.
    """
    from ..stores.cache import DecisionCache
    from ..training.collator import ToEditCollator

    device = inputs.prior.device
    edits = ToEditCollator(inputs.prior, policy, base_collator=dict)
    cached = ToEditCollator(inputs.prior, policy, base_collator=dict, cache=DecisionCache())

    def edit(collator: ToEditCollator, number: int) -> object:
        collator.set_epoch(number // len(inputs.batches))
        return collator(inputs.batch(number)).to(device)

    variants: dict[str, Variant] = {
        BACKBONE: lambda number: _backbone(inputs, number),
        EDIT: lambda number: edit(edits, number),
        CACHED: lambda number: edit(cached, number),
        SOFTMAX: lambda number: full_softmax(inputs.prior.model, **inputs.on_device(number)),
        DENSE_KL: lambda number: dense_kl(inputs.prior.model, **inputs.on_device(number)),
        **(more or {}),
    }
    notes = []
    for number in range(len(inputs.batches)):  # one epoch, to fill the cache and to count
        edit(edits, number)
        try:
            if CACHED in variants:
                edit(cached, number)
        except ValueError as error:  # a cache does not support this policy
            del variants[CACHED]
            notes.append(f"No decision cache: {error}")
    stats = edits.stats
    # Logits, the same in float32, and their softmax.
    softmax_bytes = inputs.B * inputs.T * inputs.prior.vocab_size * (2 + 4 + 4)
    if softmax_bytes > available_bytes(device):
        del variants[SOFTMAX], variants[DENSE_KL]
        notes.append(f"A full softmax is left out: it would take {_gib(softmax_bytes)}.")
    rows = compare_with(BACKBONE, variants, device, rounds=rounds)
    notes.append(
        f"{inputs.B} rows of up to {inputs.T} tokens; of {stats['scored']:,.0f} scored tokens "
        f"{stats['selected_share']:.2%} are selected and {stats['changed_share']:.3%} changed. "
        "Extra memory: peak minus the backbone's peak."
    )
    return {"title": "Edit of a batch / backbone", "rows": rows, "notes": notes}


@torch.no_grad()
def _backbone(inputs: Inputs, number: int) -> object:
    batch = inputs.on_device(number)
    del batch["labels"]
    return inputs.trunk(**batch, use_cache=False)


@torch.no_grad()
def full_softmax(model: Any, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
    """P of every token by a full softmax, (B, T - 1) float32: the least that plain code does."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    probabilities = logits[:, :-1].float().softmax(-1)
    return probabilities.gather(-1, input_ids[:, 1:].unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def dense_kl(model: Any, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
    """The prior's part of distillation: KL(prior || trainee) over the whole vocabulary.

    The trainee's logits, which training computes anyway, are the prior's own in reverse order.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    has_loss = (labels[:, 1:] != -100) & (attention_mask[:, 1:] == 1)
    logits = logits[:, :-1][has_loss].float()
    trainee, prior = logits.flip(-1).log_softmax(-1), logits.log_softmax(-1)
    return F.kl_div(trainee, prior, reduction="batchmean", log_target=True)


def measure_training(inputs: Inputs, policy: EditPolicy, *, rounds: int) -> Row:
    """A table: time and memory of a training step with editing, compared with one without.

    LoRA with checkpointing and `Prior.shared`, and training of all weights with a separate prior.
    """
    device = inputs.prior.device
    rows: list[Row] = []
    notes = [
        f"Forward, backward and AdamW on {inputs.B} rows of up to {inputs.T} tokens. LoRA: r = 16, "
        "all linear layers, gradient checkpointing, shared prior. All weights: separate prior."
    ]
    weights = sum(p.numel() * p.element_size() for p in inputs.prior.model.parameters())
    for name, setup in (("LoRA", _lora), ("all weights", _all_weights)):
        if setup is _all_weights and 4 * weights > available_bytes(device):
            notes.append(f"All weights are left out: {_gib(4 * weights)} more are needed.")
            continue
        try:
            with setup(inputs) as (trainee, prior):
                steps = training_steps(inputs, trainee, prior, policy)
                for row in compare_with("without editing", steps, device, rounds=rounds):
                    rows.append({**row, "name": f"{name}, {row['name']}"})
        except ImportError:
            notes.append('LoRA is left out: it needs peft; pip install "toedit_collate[recipes]"')
        free_memory(device)
    return {"title": "Training step / step without editing", "rows": rows, "notes": notes}


def training_steps(
    inputs: Inputs, trainee: Any, prior: Prior, policy: EditPolicy
) -> dict[str, Variant]:
    """One step without editing, and one with."""
    from ..training.collator import ToEditCollator
    from ..training.drawn_loss import use_drawn_labels

    if policy.num_draws > 1:
        use_drawn_labels(trainee)
    trained = [p for p in trainee.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_LEARNING_RATE)

    def step(batch: Any) -> None:
        trainee(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    collator = ToEditCollator(prior, policy, base_collator=dict)

    def edited(number: int) -> None:
        collator.set_epoch(number // len(inputs.batches))
        step(collator(inputs.batch(number)).to(prior.device))  # moving a batch edits it

    return {"without editing": lambda number: step(inputs.on_device(number)), "edited": edited}


@contextmanager
def _lora(inputs: Inputs) -> Iterator[tuple[Any, Prior]]:
    """LoRA on the prior's own weights, which stay the prior."""
    from peft import LoraConfig, get_peft_model

    from ..prior.prior import Prior

    base: Any = inputs.prior.model
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    # Adapters in the weights' dtype, as under autocast. In float32 they would slow the step down,
    # and the edit would seem cheaper than it is.
    trainee: Any = get_peft_model(base, config, autocast_adapter_dtype=False)
    trainee.train()
    base.gradient_checkpointing_enable({"use_reentrant": False})
    base.enable_input_require_grads()
    try:
        yield trainee, Prior.shared(trainee, tokenizer=inputs.prior.tokenizer)
    finally:
        base.gradient_checkpointing_disable()
        base.disable_input_require_grads()
        trainee.unload().eval().requires_grad_(False)


@contextmanager
def _all_weights(inputs: Inputs) -> Iterator[tuple[Any, Prior]]:
    trainee: Any = copy.deepcopy(inputs.prior.model)
    yield trainee.requires_grad_(True).train(), inputs.prior


# How it is measured


def compare_with(
    baseline: str, variants: Mapping[str, Variant], device: torch.device, *, rounds: int
) -> list[Row]:
    """The rows of `ratio_rows`, with `extra_mib`: peak memory beyond that of the baseline."""
    peaks: dict[str, int] = {}
    rows = ratio_rows(compare(variants, device, rounds=rounds, peaks=peaks), baseline)
    for row in rows:
        row["extra_mib"] = (peaks[row["name"]] - peaks[baseline]) / 2**20
    return rows


def compare(
    variants: Mapping[str, Variant], device: torch.device, *, rounds: int,
    seconds: float = _SECONDS, peaks: dict[str, int] | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Time variants against each other: in each round every variant runs once.

    If the machine slows down, it slows all variants of a round, so ratios within a round hold. A
    variant that runs out of memory on a GPU is left out.

    Args:
        variants: by name.
        device: to wait for before and after each.
        rounds: at most; after `seconds`, five are enough.
        seconds: see `rounds`.
        peaks: gets the peak memory of each variant in bytes, measured before the times.

    Returns:
        Seconds of each variant, one for each round.
    """
    clock = time.process_time if _counts_processor_time(device) else time.perf_counter
    times: dict[str, list[float]] = {}
    for name, variant in variants.items():
        try:
            variant(0)  # warms up
            peak = peak_bytes(lambda variant=variant: variant(1), device)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            free_memory(device)
            continue
        times[name] = []
        if peaks is not None:
            peaks[name] = peak
    started = time.perf_counter()
    names = list(times)
    for number in range(max(rounds, _LEAST_ROUNDS)):
        if number >= _LEAST_ROUNDS and time.perf_counter() - started > seconds:
            break
        names = names[1:] + names[:1]  # no variant always follows the same other one
        for name in names[:: -1 if number % 2 else 1]:
            synchronize(device)
            begin = clock()
            variants[name](number)
            synchronize(device)
            times[name].append(clock() - begin)
    return times


def _counts_processor_time(device: torch.device) -> bool:
    """Whether times are processor time of this process; else they are wall-clock time."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def ratio_rows(times: Mapping[str, list[float]], baseline: str) -> list[Row]:
    """A row for each variant: the median of its ratios to the baseline, and their quartiles."""
    rows = []
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times[baseline], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rows.append({
            "name": name, "ratio": statistics.median(ratios), "low": low, "high": high,
            "ms": 1000 * statistics.median(seconds),
        })  # fmt: skip
    return rows


def format_table(table: Row) -> str:
    """A table as text: title, rows, notes."""
    width = max(len(row["name"]) for row in table["rows"]) if table["rows"] else 0
    has_memory = any("extra_mib" in row for row in table["rows"])
    header = f"{'':{width}}  ratio  quartiles            ms{'  extra MiB' * has_memory}"
    lines = ["", table["title"], header]
    for row in table["rows"]:
        spread = f"{row['low']:.3f} - {row['high']:.3f}"
        line = f"{row['name']:{width}}  {row['ratio']:5.3f}  {spread:13}  {row['ms']:9.1f}"
        lines.append(f"{line}  {row['extra_mib']:9,.1f}" if "extra_mib" in row else line)
    return "\n".join([*lines, *(textwrap.fill(note, 100) for note in table["notes"])])


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most memory that a function has in use at once, beyond what is in use before it."""
    gc.collect()
    if device.type != "cuda":
        with LiveMemory() as memory:
            function()
        return memory.peak
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Return unused memory to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available_bytes(device: torch.device) -> int:
    """Free memory of a device."""
    import psutil  # type: ignore[import-untyped] # accelerate requires it

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


def machine_facts(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """What a reader must know before comparing two tables."""
    import transformers

    from .. import __version__

    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return {
        "device": f"{device.type} ({name}), {torch.get_num_threads()} of {os.cpu_count()} threads",
        "dtype": str(dtype).removeprefix("torch."),
        "times": "processor time" if _counts_processor_time(device) else "by the clock",
        "versions": f"toedit_collate {__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, python {platform.python_version()}",
    }


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
