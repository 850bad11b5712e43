"""`toedit demo`: what a larger prior teaches a smaller model, shown on real text in minutes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from ...config import options
from ...errors import UnusableError

POLICY = "distill redraw=never"


def add_demo(commands: Any) -> None:
    """Add `demo` to the subcommands of an argparse parser."""
    parser = options.add_command(
        commands,
        "demo",
        "see on real text what a prior edits, and whether it pays",
        "Train a small prior on text that comes with Python (or take --prior and --data), show the "
        "labels that it draws, and train a smaller model with and without them. Then show the "
        "edits of the paper. Ends within five minutes on two CPU cores, and says what it left out. "
        "Downloads nothing, unless --prior or --data names something on the hub.",
        "toedit demo --prior HuggingFaceTB/SmolLM2-135M-Instruct --data a.jsonl",
    )
    options.add_data(parser, more="; default: Python's help topics")
    options.add_prior(
        parser,
        leave_out=("--device", "--quantization", "--adapter", "--compile", "--prior-aligned"),
        prior="; default: train a small one",
    )
    policy = options.Group(parser, "policy")
    options.add_policy(policy, default=POLICY, more="; for the training run with edits")
    options.add_seed(policy, "everything")
    training = options.Group(parser, "training")
    steps = "training steps of each run, if there is time"
    training.value("--steps", steps, "N", options.positive, 120)
    seconds = "time limit: a slow machine reads and trains less"
    training.value("--seconds", seconds, "X", options.number_above_0, 240.0)
    output = options.Group(parser, "output")
    output.value("--output", "save the small prior, for --prior", "DIR", Path)
    options.add_color(output)
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
    policy = options.read_policy(args.policy, seed=args.seed)
    from .show import show_demo  # late: it imports torch

    show_demo(args, policy, deadline)
