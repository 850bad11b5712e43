"""`toedit demo`: what a larger prior teaches a smaller model, shown on real text in minutes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ...config.options import (
    add_color,
    add_data,
    add_policy_name,
    add_prior,
    add_seed,
    number_above_0,
    positive,
    read_policy,
)
from ...errors import UnusableError

POLICY = "distill redraw=never"


def add_demo(commands: Any) -> None:
    """Add `demo` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "demo",
        help="see on real text what a prior edits, and whether it pays",
        description="Train a small prior on text that comes with Python (or take --prior and "
        "--data), show the labels that it draws, and train a smaller model with and without them. "
        "Then show the edits of the paper. Ends within five minutes on two CPU cores, and says "
        "what it left out. Downloads nothing, unless --prior or --data names something on the hub.",
        epilog="example: toedit demo --prior HuggingFaceTB/SmolLM2-135M-Instruct --data a.jsonl",
    )
    add_data(parser, more="; default: Python's help topics")
    add_policy_name(parser, default=POLICY, more="; for the training run with edits")
    parser.add_argument(
        "--steps",
        type=positive,
        default=120,
        metavar="N",
        help="training steps of each run, if there is time; default: %(default)s",
    )
    parser.add_argument(
        "--seconds",
        type=number_above_0,
        default=240.0,
        metavar="X",
        help="time limit: a slow machine reads and trains less; default: %(default)s",
    )
    add_seed(parser, "everything")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="save the small prior, for --prior"
    )
    add_color(parser)
    add_prior(
        parser, leave_out=("device", "quantization", "adapter", "compile", "prior_aligned"),
        prior="; default: train a small one",
    )  # fmt: skip
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    deadline = time.monotonic() + args.seconds
    if args.prior is not None and args.output is not None:
        raise UnusableError(
            f"--output {args.output} saves the small prior, but --prior {args.prior} was given; "
            "remove one of them"
        )
    if args.prior is None and args.data is not None:
        raise UnusableError(
            f"--data {args.data} requires --prior; name a model that knows the text"
        )
    policy = read_policy(args.policy, seed=args.seed)
    from .show import show_demo  # late: it imports torch

    show_demo(args, policy, deadline)
