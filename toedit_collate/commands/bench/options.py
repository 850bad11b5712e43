"""The options of `toedit bench`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from ...config.options import add_data, add_policy_name, add_prior, add_seed, parts, positive
from ...prior.loading import QUANTIZATIONS
from .parts import PARTS

SHAPE_NAMES = ("llama3-8b", "olmo-1b", "qwen2.5-0.5b", "tiny")


def add_bench(commands: Any) -> None:
    """Add `bench` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "bench",
        help="measure what editing costs on this machine, as ratios within one run",
        description="Measure what editing a batch costs beside one forward pass of the prior's "
        "backbone: time, memory, and what it adds to a step of training; with each trick switched "
        "off, too. Everything is measured in this one run; figures of other runs are not "
        "comparable, their ratios are. Without options: random weights of a tiny prior, in two or "
        "three minutes on two CPU cores.",
    )
    _add_inputs(parser)
    _add_measuring(parser)
    parser.add_argument(
        "--json", metavar="FILE", help="write all figures as JSON; -: to stdout, and no table"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw a chart (.png, .svg, .pdf); needs matplotlib",
    )
    parser.set_defaults(run=_run, default_of=parser.get_default)


def _add_inputs(parser: Any) -> None:
    parser.add_argument(
        "--shape",
        choices=SHAPE_NAMES,
        help="random weights of this size, and hidden states with the probabilities of the "
        "paper's Table 8; default: tiny",
    )
    parser.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="rows; default: %(default)s"
    )
    parser.add_argument(
        "--max-length",
        type=positive,
        metavar="N",
        help="tokens of a row; default: 1024 for shapes on a GPU, else 512",
    )
    add_policy_name(
        parser, default="paper", more="; with the region above, and candidates by top_k"
    )
    add_data(parser, more="; for --prior")
    add_prior(
        parser, leave_out=("quantization", "compile"), prior=", with --data, in place of a shape",
        dtype="; of random weights bfloat16",
        prior_aligned="; its edit is timed beside the prior's own: alone, if no --parts are given",
    )  # fmt: skip
    hidden = {"type": positive, "help": argparse.SUPPRESS}  # as they were called before
    parser.add_argument("--length", dest="max_length", **hidden)
    parser.add_argument("--train-length", dest="train_max_length", **hidden)
    parser.add_argument("--trainee-tokenizer", dest="prior_aligned", help=argparse.SUPPRESS)


def _add_measuring(parser: Any) -> None:
    parser.add_argument(
        "--parts",
        type=parts(PARTS),
        metavar="LIST",
        help=f"what to measure, of {','.join(PARTS)}; default: all that make sense here",
    )
    parser.add_argument(
        "--pairs",
        type=positive,
        default=11,
        metavar="N",
        help="how often each variant is timed; fewer, but at least 5, where that takes long; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--compile", action="store_true", help="also time the edit with a compiled backbone"
    )
    parser.add_argument(
        "--quantization",
        type=_names,
        default=(),
        metavar="LIST",
        help="for the part agreement, with --prior: also look at copies of it, of "
        f"{','.join(QUANTIZATIONS)}",
    )
    parser.add_argument(
        "--train-batch-size",
        type=positive,
        metavar="N",
        help="rows of a training step; default: 8 on a GPU, 2 on a CPU",
    )
    parser.add_argument(
        "--train-max-length",
        type=positive,
        metavar="N",
        help="tokens of its rows; default: --max-length on a GPU, at most 256 on a CPU",
    )
    add_seed(parser, "everything")


def _run(args: argparse.Namespace) -> None:
    from .run import run_bench  # late: `toedit --help` needs none of it

    run_bench(args, _command(args))


def _command(args: argparse.Namespace) -> str:
    """The command that makes this run, for the report."""
    words = ["toedit", "bench"]
    for name, value in vars(args).items():
        if name in ("command", "run", "default_of") or value == args.default_of(name):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(",".join(value) if isinstance(value, tuple) else str(value))
    return shlex.join(words)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
