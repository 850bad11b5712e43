"""`toedit demo`: what a larger prior teaches a smaller model, shown on real text in minutes."""

from __future__ import annotations

import argparse
import time
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
        "Take a small prior of text that comes with Python (or --prior and --data), and show the "
        "labels that it draws. Train a smaller model with and without them. Then show the edits of "
        "the paper. The small prior is trained once, in a minute, and kept. Ends within five "
        "minutes on two CPU cores. "
        "Downloads nothing, unless --prior or --data names something on the hub.",
        "toedit demo --prior HuggingFaceTB/SmolLM2-135M-Instruct --data a.jsonl",
    )
    options.add_data(parser, more="; default: Python's help topics")
    prior = "a causal language model; default: toedit-demo, a small one"
    options.Group(parser, "prior").value("--prior", prior, "PATH_OR_HUB_ID")
    policy = options.Group(parser, "policy")
    options.add_policy(policy, default=POLICY, more="; for the training run with edits")
    options.add_seed(policy, "draws and training runs")
    training = options.Group(parser, "training")
    steps = "training steps of each run, if there is time"
    training.value("--steps", steps, "N", options.positive, 120)
    seconds = "time limit: a slow machine reads and trains less"
    training.value("--seconds", seconds, "X", options.number_above_0, 240.0)
    options.add_color(options.Group(parser, "output"))
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    deadline = time.monotonic() + args.seconds
    if args.prior is None and args.data is not None:
        raise UnusableError(
            f"--data {args.data} requires --prior; name a model that knows the text"
        )
    policy = options.read_policy(args.policy, seed=args.seed)
    from .show import show_demo  # late: it imports torch

    show_demo(args, policy, deadline)
