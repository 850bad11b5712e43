"""The options of `toedit demo`."""

from __future__ import annotations

import argparse
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
    prior_options,
    wants_color,
)
from ...errors import UnusableError

DEFAULT_SECONDS = 600.0  # no more than a cap: on two CPU cores it takes less than a minute
DEFAULT_STEPS = 500


def add_demo(commands: Any) -> None:
    """Add `demo` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "demo",
        help="edit real text with a small prior, and show what changes and what it costs",
        description="Make a small prior from text that comes with Python (or take --prior), show "
        "a passage with its edits, the shares of selected and changed tokens, the cost, and the "
        "held-out perplexity of a LoRA run with and without editing. Nothing is downloaded unless "
        "--prior names a model on the hub.",
    )
    add_data(parser, more="; default: Python's help topics")
    add_policy_name(
        parser, default="reference_code",
        more="; how the passage and the LoRA run are edited",
    )  # fmt: skip
    parser.add_argument(
        "--prior-steps",
        type=positive,
        metavar="N",
        help=f"of making the prior; default: {DEFAULT_STEPS}",
    )
    parser.add_argument(
        "--seconds",
        type=number_above_0,
        metavar="X",
        help=f"time limit for that: fewer steps then; default: {DEFAULT_SECONDS:g}",
    )
    parser.add_argument(
        "--steps",
        type=positive,
        default=30,
        metavar="N",
        help="of each LoRA run; default: %(default)s",
    )
    add_seed(parser, "everything")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="save the prior that was made, for --prior"
    )
    add_color(parser)
    add_prior(
        parser, leave_out=("device", "quantization", "adapter", "compile", "prior_aligned"),
        prior="; default: make one", dtype="; on a CPU always float32",
    )  # fmt: skip
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    _check_together(args)
    from .run import Settings, run_demo  # late: `toedit --help` needs none of it

    run_demo(
        Settings(
            prior=args.prior,
            prior_options=prior_options(args),
            data=args.data,
            split=args.split,
            policy=" ".join(args.policy.split()),
            prior_steps=args.prior_steps or DEFAULT_STEPS,
            seconds=args.seconds or DEFAULT_SECONDS,
            steps=args.steps,
            seed=args.seed,
            output=args.output,
            color=wants_color(args),
        )
    )


def _check_together(args: argparse.Namespace) -> None:
    for name in ("prior_steps", "seconds", "output"):
        value = getattr(args, name)
        if args.prior is not None and value is not None:
            raise UnusableError(
                f"--{name.replace('_', '-')} {value} is for making a prior, and --prior "
                f"{args.prior} gives one; leave one of them out"
            )
