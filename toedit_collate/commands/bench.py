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

from ..config.options import add_data, add_policy_name, add_prior, add_seed, positive, read_policy
from ..errors import UnusableError
from .counting import LiveMemory

if TYPE_CHECKING:
    from ..data import Data
    from ..policy import EditPolicy
    from ..prior.prior import Prior

Batch = dict[str, Any]
"""input_ids, attention_mask and labels: (B, T) int64 on the CPU, padded on the right."""
Variant = Callable[[int], object]
"""What is timed. It gets the number of the round, and its result is thrown away."""
Row = dict[str, Any]
"""One line of a table: `name`, and figures by column."""

BACKBONE = "bare backbone"
EDIT = "edit"
CACHED = "edit, a later epoch from the decision cache"
SOFTMAX = "full softmax in plain PyTorch, no draws"
DENSE_KL = "dense KL to the prior, instead of an edit"
_NUM_BATCHES = 8
_LEAST_ROUNDS = 5
_SECONDS = 40.0  # for one table; then `_LEAST_ROUNDS` are enough
_LEARNING_RATE = 1e-6  # weights should hardly move: all steps must cost the same


def add_bench(commands: Any) -> None:
    """Add `bench` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "bench",
        help="measure what editing costs on this machine, as ratios within one run",
        description="Measure what editing costs with your prior, text and policy: the edit of a "
        "batch compared with one forward pass of the prior's backbone, a full softmax and a dense "
        "KL term; its memory; and a training step with and without editing. Compare ratios, not "
        "times, between machines. Without --prior and --data: the small model and text of "
        "toedit-demo.",
    )
    add_data(parser)
    add_prior(parser, leave_out=("prior_aligned",))
    add_policy_name(parser, default="paper")
    parser.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="rows; default: %(default)s"
    )
    parser.add_argument(
        "--max-length", type=positive, default=512, metavar="N",
        help="tokens of a row, at most; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--train-batch-size", type=positive, metavar="N",
        help="rows of a training step; default: --batch-size on a GPU, 2 on a CPU",
    )  # fmt: skip
    parser.add_argument("--no-training", action="store_true", help="leave out the training steps")
    parser.add_argument(
        "--rounds", type=positive, default=11, metavar="N",
        help="how often each variant is timed; at least 5 where that takes long; default: "
        "%(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=positive, default=1, metavar="N",
        help="of a CPU. With one, times are processor time of this process, which other programs "
        "disturb less; default: %(default)s",
    )  # fmt: skip
    add_seed(parser, "batches and draws")
    parser.add_argument(
        "--json", metavar="FILE", help="write all figures as JSON; -: to stdout, and no table"
    )
    parser.set_defaults(run=run_bench, default_of=parser.get_default)


def run_bench(args: argparse.Namespace) -> None:
    """Measure, and print the report.

    Raises:
        UnusableError: an argument cannot be used here.
    """
    from ..config.options import prior_options
    from ..config.priors import open_prior
    from ..config.quiet import quiet
    from ..data import open_data
    from ..data.demo_model import demo_model
    from ..data.demo_text import DEMO
    from ..data.files import as_json, write_json

    if (args.prior is None) != (args.data is None):
        raise UnusableError("--prior and --data belong together: a model and text for it; add both")
    policy = read_policy(args.policy, seed=args.seed)
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        with quiet():
            name, data = args.prior or str(demo_model()), open_data(args.data or DEMO, args.split)
            prior = open_prior(name, needs_tokenizer=False, **prior_options(args))
            T = min(args.max_length, prior.max_length or args.max_length)
            inputs = read_inputs(prior, data, B=args.batch_size, T=T, seed=args.seed)
            facts = machine_facts(prior.device, prior.model.dtype)
            facts = {"command": _command(args), "prior": name, "policy": args.policy, **facts}
            report = {"facts": facts}
            if args.json != "-":
                print("\n".join(f"{name:14}  {value}" for name, value in facts.items()), flush=True)
            for section, measure in (("edit", measure_edit), ("training", measure_training)):
                if section == "training" and args.no_training:
                    continue
                if section == "training":
                    B = args.train_batch_size or (2 if prior.device.type == "cpu" else inputs.B)
                    inputs = read_inputs(prior, data, B=B, T=T, seed=args.seed)
                report[section] = measure(inputs, policy, rounds=args.rounds)
                if args.json != "-":
                    print(format_table(report[section]), flush=True)
    finally:
        torch.set_num_threads(before)
    if args.json == "-":
        print(as_json(report))
    elif args.json is not None:
        write_json(Path(args.json), report, "--json")


def _command(args: argparse.Namespace) -> str:
    words = ["toedit", "bench"]
    for name, value in vars(args).items():
        if name not in ("command", "run", "default_of") and value != args.default_of(name):
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


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
        """That of a round."""
        return self.batches[number % len(self.batches)]

    def on_device(self, number: int) -> Batch:
        """The same, where the prior is."""
        return {key: value.to(self.prior.device) for key, value in self.batch(number).items()}


def read_inputs(prior: Prior, data: Data, *, B: int, T: int, seed: int) -> Inputs:
    """Up to eight batches of text; long documents are cut into windows of T tokens.

    Raises:
        UnusableError: the data cannot be read, or is too little.
    """
    from ..data import Preparation, examples

    found = examples(data, prior.tokenizer, Preparation(max_length=T), vocab_size=prior.vocab_size)
    # The last window of a long document is left out: it is short, and batches would be padded.
    whole = (one for one in found if len(one.ids) > 1 and (not one.start or len(one.ids) == T))
    pieces = [(one.ids, one.labels) for one in islice(whole, 4 * _NUM_BATCHES * B)]
    if len(pieces) < B:
        raise data.error(
            f"gives {len(pieces)} pieces of up to {T} tokens, and a batch takes {B}; add text, or "
            "use a smaller --batch-size"
        )
    if all(label == -100 for _, labels in pieces for label in labels[1:]):
        raise data.error("no token has a label other than -100, so none is edited; fix the labels")
    random.Random(seed).shuffle(pieces)
    number = min(_NUM_BATCHES, len(pieces) // B)
    batches = [_pad(pieces[n * B : (n + 1) * B], prior.pad_id) for n in range(number)]
    return Inputs(prior, batches, B, T)


def _pad(pieces: list[tuple[list[int], list[int]]], pad_id: int) -> Batch:
    ids, labels = ([torch.tensor(one) for one in of] for of in zip(*pieces, strict=True))
    pad = torch.nn.utils.rnn.pad_sequence
    masks = [torch.ones_like(one) for one in ids]
    return {
        "input_ids": pad(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": pad(masks, batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }


def measure_edit(
    inputs: Inputs, policy: EditPolicy, *, rounds: int, more: Mapping[str, Variant] | None = None
) -> Row:
    """Time and memory of one batch's edit and of its alternatives, compared with the backbone's.

    Args:
        inputs: the prior and batches.
        policy: any policy.
        rounds: how often each variant is timed, at most.
        more: other variants to time, by name.

    Returns:
        A table for `format_table`.
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
    for number in range(len(inputs.batches)):  # one epoch: fills the cache, and is counted
        edit(edits, number)
        try:
            if CACHED in variants:
                edit(cached, number)
        except ValueError as error:  # a policy that a cache cannot serve
            del variants[CACHED]
            notes.append(f"No decision cache: {error}")
    stats = edits.stats
    if _softmax_bytes(inputs) > available_bytes(device):
        del variants[SOFTMAX], variants[DENSE_KL]
        notes.append(f"A full softmax is left out: it would take {_gib(_softmax_bytes(inputs))}.")
    peaks: dict[str, int] = {}
    seconds = compare(variants, device, rounds=rounds, peaks=peaks)
    rows = ratio_rows(seconds, BACKBONE)
    for row in rows:
        row["extra_mib"] = (peaks[row["name"]] - peaks[BACKBONE]) / 2**20
    notes.append(
        f"{inputs.B} rows of up to {inputs.T} tokens; of {stats['scored']:,.0f} scored tokens "
        f"{stats['selected_share']:.2%} are selected and {stats['changed_share']:.3%} changed. "
        "Extra memory: peak beyond the backbone's own peak."
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
    """The prior's side of distillation: KL(prior || trainee) over the whole vocabulary.

    The prior's own logits, reversed, stand in for the trainee's, which training computes anyway.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    has_loss = (labels[:, 1:] != -100) & (attention_mask[:, 1:] == 1)
    logits = logits[:, :-1][has_loss].float()
    trainee, prior = logits.flip(-1).log_softmax(-1), logits.log_softmax(-1)
    return F.kl_div(trainee, prior, reduction="batchmean", log_target=True)


def measure_training(inputs: Inputs, policy: EditPolicy, *, rounds: int) -> Row:
    """Time of a training step with editing, compared with the same step without.

    LoRA with checkpointing and `Prior.shared`, and training of all weights with a prior of its own.

    Returns:
        A table for `format_table`.
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
                peaks: dict[str, int] = {}
                seconds = compare(steps, device, rounds=rounds, peaks=peaks)
                for row in ratio_rows(seconds, "without editing"):
                    row["extra_mib"] = (peaks[row["name"]] - peaks["without editing"]) / 2**20
                    rows.append({**row, "name": f"{name}, {row['name']}"})
        except ImportError:
            notes.append('LoRA is left out: it needs peft; pip install "toedit_collate[recipes]"')
        free_memory(device)
    return {"title": "Training step / step without editing", "rows": rows, "notes": notes}


def training_steps(
    inputs: Inputs, trainee: Any, prior: Prior, policy: EditPolicy
) -> dict[str, Variant]:
    """One step without editing, one with, and one of a later epoch with a decision cache."""
    from ..stores.cache import DecisionCache
    from ..training.collator import ToEditCollator
    from ..training.drawn_loss import use_drawn_labels

    if policy.num_draws > 1:
        use_drawn_labels(trainee)
    device = prior.device
    optimizer = torch.optim.AdamW(
        [p for p in trainee.parameters() if p.requires_grad], lr=_LEARNING_RATE
    )

    def step(batch: Any) -> None:
        trainee(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def edited(collator: ToEditCollator, number: int) -> None:
        collator.set_epoch(number // len(inputs.batches))
        step(collator(inputs.batch(number)).to(device))  # moving a batch edits it

    edits = ToEditCollator(prior, policy, base_collator=dict)
    cached = ToEditCollator(prior, policy, base_collator=dict, cache=DecisionCache())
    steps: dict[str, Variant] = {
        "without editing": lambda number: step(inputs.on_device(number)),
        "edited": lambda number: edited(edits, number),
        "a later epoch, cached": lambda number: edited(cached, number),
    }
    try:
        for batch in inputs.batches:
            cached(batch).to(device)
    except ValueError:  # a policy that a cache cannot serve
        del steps["a later epoch, cached"]
    return steps


@contextmanager
def _lora(inputs: Inputs) -> Iterator[tuple[Any, Prior]]:
    """LoRA on the prior's own weights, which stay the prior."""
    from peft import LoraConfig, get_peft_model

    from ..prior.prior import Prior

    base: Any = inputs.prior.model
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    # Adapters in the weights' dtype, as under autocast. In float32 they would slow the step down,
    # which would flatter the edit.
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


def compare(
    variants: Mapping[str, Variant], device: torch.device, *, rounds: int,
    seconds: float = _SECONDS, peaks: dict[str, int] | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Time variants against each other: in each round every variant runs once.

    A machine that slows down for a while slows all variants of a round, so ratios within a round
    hold where times do not. A variant that runs out of memory on a GPU is left out.

    Args:
        variants: by name.
        device: to wait for before and after each.
        rounds: at most.
        seconds: after these, five rounds are enough.
        peaks: is filled with the peak memory of each variant in bytes, before anything is timed.

    Returns:
        Seconds of each variant, one for each round.
    """
    clock = time.process_time if counts_processor_time(device) else time.perf_counter
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


def counts_processor_time(device: torch.device) -> bool:
    """Whether times are processor time of this process; else they are by the clock."""
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
    import textwrap

    width = max(len(row["name"]) for row in table["rows"]) if table["rows"] else 0
    has_memory = any("extra_mib" in row for row in table["rows"])
    header = f"{'':{width}}  ratio  quartiles            ms{'  extra MiB' * has_memory}"
    lines = ["", table["title"], header]
    for row in table["rows"]:
        spread = f"{row['low']:.3f} - {row['high']:.3f}"
        line = f"{row['name']:{width}}  {row['ratio']:5.3f}  {spread:13}  {row['ms']:9.1f}"
        lines.append(f"{line}  {row['extra_mib']:9,.1f}" if "extra_mib" in row else line)
    return "\n".join(
        [*lines, *(line for note in table["notes"] for line in textwrap.wrap(note, 100))]
    )


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
    """Wait until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Return unused memory to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def available_bytes(device: torch.device) -> int:
    """Memory that is free on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux: let it try
        return 2**62
    return 1024 * int(next(line for line in lines if "MemAvailable" in line).split()[1])


def machine_facts(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """What a reader must know before comparing two tables."""
    import transformers

    from .. import __version__

    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    elif (info := Path("/proc/cpuinfo")).exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(": ", 1)[1] if models else name
    clock = "processor time" if counts_processor_time(device) else "by the clock"
    return {
        "device": f"{device.type} ({name}), {torch.get_num_threads()} of {os.cpu_count()} threads",
        "dtype": str(dtype).removeprefix("torch."),
        "times": clock,
        "versions": f"toedit_collate {__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, python {platform.python_version()}",
    }


def _softmax_bytes(inputs: Inputs) -> int:
    """Logits, the same in float32, and their softmax."""
    return inputs.B * inputs.T * inputs.prior.vocab_size * (2 + 4 + 4)


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
