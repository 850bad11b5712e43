"""The bench from end to end: what was asked for, the parts, the report."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch

from ... import __version__
from ...config.options import read_policy
from ...config.priors import open_prior
from ...config.quiet import quiet
from ...data.files import as_json, write_json
from ...errors import UnusableError, first_line
from ...policy import EditPolicy
from ..measuring.inputs import Inputs, Source, random_source
from ..measuring.machine import machine_facts
from ..measuring.threads import fastest_threads
from ..measuring.timing import clock_of
from .agreement import measure_agreement
from .aligned import measure_aligned
from .edit import measure_edit
from .head_alone import measure_head
from .host import measure_host
from .journal import measure_journal
from .memory import measure_memory
from .parts import PARTS
from .survivors import measure_survivors
from .table import Section, format_head, format_section
from .training import measure_training

_FEW_TOKENS = 256  # of a row in a training step on a CPU


def run_bench(args: argparse.Namespace, command: str) -> None:
    """Measure, and print the report.

    Args:
        args: of `add_bench`.
        command: that gave them.

    Raises:
        UnusableError: an argument can't be used here.
    """
    device = _device(args.device)
    policy = _policy(args)
    _check_together(args)
    _check_outputs(args)
    with quiet(), fastest_threads() if device.type == "cpu" else nullcontext():
        source = _open(args, device)
        dtype = next(source.prior.model.parameters()).dtype
        facts = {
            "command": command,
            "prior": source.name,
            "toedit_collate": __version__,
            **machine_facts(device, dtype),
            "times": clock_of(device)[0],
            "policy": args.policy,
        }
        sections = []
        aloud = args.json != "-"
        if aloud:
            print(format_head(facts), flush=True)
        for section in _measure(args, source, policy):
            sections.append(section)
            if aloud:
                print(format_section(section), flush=True)
    if args.json is not None:
        record = {"facts": facts, "parts": {s.name: s.record() for s in sections}}
        if aloud:
            write_json(Path(args.json), record, "--json")
        else:
            print(as_json(record))
    if args.plot is not None:
        from .plot import draw

        draw(args.plot, facts, sections)
        if aloud:
            print(f"\nChart: {args.plot}")


def _open(args: argparse.Namespace, device: torch.device) -> Source:
    if args.prior is None:
        dtype = torch.bfloat16 if args.dtype == "auto" else getattr(torch, args.dtype)
        return random_source(args.shape or "tiny", device=device, dtype=dtype, seed=args.seed)
    prior = open_prior(
        args.prior, dtype=args.dtype, device=device, adapter=args.adapter, revision=args.revision,
        needs_tokenizer=False,
    )  # fmt: skip
    return Source(prior, f"{args.prior}, text of {args.data}", text=(args.data, args.split),
                  seed=args.seed)  # fmt: skip


def _policy(args: argparse.Namespace) -> EditPolicy:
    """The policy, of those that the definition in plain code beside ours knows, too."""
    policy = read_policy(args.policy, seed=args.seed)
    ours = (policy.region, policy.sampler, policy.drop_below, policy.target)
    if ours != ("above", "top_k", None, "both"):
        raise UnusableError(
            f"--policy {args.policy}: the bench compares with Algorithm 1 in plain code, which has "
            "region=above, sampler=top_k, target=both and no drop_below; name such a policy"
        )
    return policy


def _measure(args: argparse.Namespace, source: Source, policy: EditPolicy) -> Iterator[Section]:
    B, T = args.batch_size, _length(args, source)
    on_cpu = source.prior.device.type == "cpu"
    parts, left_out = args.parts or PARTS, ""
    if args.parts is None and on_cpu and source.shape not in (None, "tiny"):
        parts = tuple(part for part in PARTS if part != "training")
        left_out = "The part training is left out on a CPU with this shape; --parts training asks."
    inputs = source.inputs(B, T)
    if args.prior_aligned is not None:
        yield measure_aligned(inputs, policy, tokenizer=args.prior_aligned, pairs=args.pairs)
        parts = args.parts or ()
    measures: dict[str, Callable[[], Section]] = {
        "edit": lambda: measure_edit(inputs, policy, pairs=args.pairs, compiled=args.compile),
        "head": lambda: measure_head(inputs, policy, pairs=args.pairs),
        "memory": lambda: measure_memory(inputs, policy),
        "host": lambda: measure_host(inputs, policy),
        "survivors": lambda: measure_survivors(inputs, policy, seed=args.seed),
        "agreement": lambda: measure_agreement(
            inputs, policy, name=args.prior, quantizations=args.quantization
        ),
        "training": lambda: measure_training(
            _training_inputs(args, source, T), policy, pairs=args.pairs
        ),
        "journal": measure_journal,
    }
    for number, part in enumerate(parts):
        section = measures[part]()
        if left_out and number == len(parts) - 1:
            section.notes.append(left_out)
        yield section


def _training_inputs(args: argparse.Namespace, source: Source, T: int) -> Inputs:
    on_cpu = source.prior.device.type == "cpu"
    B = args.train_batch_size or (min(args.batch_size, 2) if on_cpu else args.batch_size)
    T = args.train_max_length or (min(T, _FEW_TOKENS) if on_cpu else T)
    return source.inputs(B, T, option="--train-max-length")


def _length(args: argparse.Namespace, source: Source) -> int:
    if args.max_length is not None:
        return args.max_length
    wanted = (
        1024 if source.shape not in (None, "tiny") and source.prior.device.type != "cpu" else 512
    )
    return min(wanted, source.prior.max_length or wanted)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UnusableError(
            f"--device {name}: can't be used here ({first_line(error)}); write cpu, cuda "
            "or cuda:0, or leave it out"
        ) from None
    return device


def _check_together(args: argparse.Namespace) -> None:
    if args.prior is not None and args.shape is not None:
        raise UnusableError(
            f"--shape {args.shape} is for random weights, and --prior {args.prior} has its own; "
            "leave one of them out"
        )
    if (args.prior is None) != (args.data is None):
        given = f"--prior {args.prior}" if args.data is None else f"--data {args.data}"
        missing = "--data FILE" if args.data is None else "--prior PATH_OR_HUB_ID"
        raise UnusableError(f"{given}: a prior and its text belong together; add {missing}")
    if args.prior_aligned is not None and args.prior is None:
        raise UnusableError(
            f"--prior-aligned {args.prior_aligned}: random weights have no tokenizer; add --prior "
            "and --data"
        )
    if args.quantization and args.prior is None:
        raise UnusableError(
            f"--quantization {','.join(args.quantization)}: random weights say nothing about it; "
            "add --prior and --data"
        )


def _check_outputs(args: argparse.Namespace) -> None:
    """Before minutes are spent."""
    if args.plot is not None:
        from .plot import check_plot

        check_plot(args.plot)
    for name in ("json", "plot"):
        path = getattr(args, name)
        if path not in (None, "-") and not Path(path).absolute().parent.is_dir():
            raise UnusableError(
                f"--{name} {path}: there is no folder {Path(path).parent}; make it first"
            )
