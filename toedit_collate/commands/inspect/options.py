"""The options of `toedit inspect`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...config.options import (
    add_color,
    add_data,
    add_prior,
    add_reading,
    add_seed,
    positive,
    prior_options,
    whole,
)
from ...config.policies import POLICY_HELP


def add_inspect(commands: Any) -> None:
    """Add `inspect` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "inspect",
        help="see what policies would do to your data, before you train",
        description="Show what one or several policies would do to data, in one pass of the prior: "
        "how many tokens of which kind they select and change, documents with their edits and the "
        "prior's runners-up, and a recommendation with its reasons. Nothing is written but what "
        "--html and --json name.",
    )
    add_data(parser, required=True)
    add_prior(parser)
    parser.add_argument(
        "--policy",
        nargs="+",
        action="extend",
        metavar="POLICY",
        help=f"{POLICY_HELP}; several are compared; default: paper, reference_code and "
        "threshold=0.5",
    )
    parser.add_argument(
        "--protect",
        metavar="RULES",
        help="in all policies, never edit tokens of these rules: numbers, code, urls, latex, "
        "names, regex:..., with commas between",
    )
    parser.add_argument(
        "--journal",
        type=Path,
        metavar="DIR",
        help="instead: what a run with this journal really edited, per generation; --prior may "
        "then be a tokenizer alone",
    )
    parser.add_argument(
        "--own-tokens",
        action="store_true",
        help="with --prior-aligned: also edit the same data through the prior's own tokenizer, and "
        "print the shares of both",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page, for a browser")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and edits")
    _add_choice(parser)
    parser.set_defaults(run=_run)


def _add_choice(parser: Any) -> None:
    group = parser.add_argument_group("documents")
    group.add_argument(
        "--limit",
        type=whole,
        default=500,
        metavar="N",
        help="look at so many; 0: at all; default: %(default)s",
    )
    group.add_argument(
        "--order",
        choices=("edited", "file", "random"),
        default="edited",
        help="which are shown: those with the most edits, the first, or any; default: %(default)s",
    )
    add_seed(group, "--order random, which also chooses those to look at")
    group.add_argument("--find", metavar="REGEX", help="only documents with this in their text")
    group.add_argument(
        "--show",
        type=whole,
        default=3,
        metavar="N",
        help="so many in the terminal; default: %(default)s",
    )
    group.add_argument(
        "--keep",
        type=positive,
        default=200,
        metavar="N",
        help="so many in --html and --json; default: %(default)s",
    )
    add_reading(group, max_length="what the prior can take", batch_tokens=4096)
    add_color(group)


def _run(args: argparse.Namespace) -> int:
    from .run import run_inspect  # late: `toedit --help` needs none of it

    return run_inspect(args, prior_options(args))
