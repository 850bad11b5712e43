"""The options of `toedit demo`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ...tools.errors import UnusableError
from ...tools.options import number_above_0, positive, seed

DEFAULT_SECONDS = 180.0
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
    parser.add_argument(
        "--prior", metavar="PATH_OR_HUB_ID", help="a causal language model; default: make one"
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="documents of text or chats: .jsonl, .parquet, .csv, .txt (documents between blank "
        "lines), a folder of save_to_disk, or a hub dataset; default: Python's help topics",
    )
    parser.add_argument(
        "--policy",
        choices=("paper", "reference_code"),
        default="reference_code",
        help="how the LoRA run is edited: as in the paper, or as the authors' script does it, "
        "which changes some twenty times more tokens; default: %(default)s",
    )
    parser.add_argument(
        "--prior-steps",
        type=positive,
        metavar="N",
        help=f"of making the prior; default: {DEFAULT_STEPS}",
    )
    parser.add_argument(
        "--seconds",
        type=number_above_0,
        help=f"time limit for that: fewer steps then; default: {DEFAULT_SECONDS:g}",
    )
    parser.add_argument(
        "--steps", type=positive, default=30, help="of each LoRA run; default: %(default)s"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of everything; default: %(default)s")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="save the prior that was made, for --prior"
    )
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: on a terminal, unless NO_COLOR is set; default: %(default)s",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    _check_together(args)
    from .run import Settings, run_demo  # late: `toedit --help` needs none of it

    run_demo(
        Settings(
            prior=args.prior,
            data=args.data,
            policy=args.policy,
            prior_steps=args.prior_steps or DEFAULT_STEPS,
            seconds=args.seconds or DEFAULT_SECONDS,
            steps=args.steps,
            seed=args.seed,
            output=args.output,
            color=_use_color(args.color),
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


def _use_color(choice: str) -> bool:
    if choice == "auto":
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return choice == "always"
