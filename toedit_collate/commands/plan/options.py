"""The options of `toedit plan`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...config.options import positive, share


def add_plan(commands: Any) -> None:
    """Add `plan` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "plan",
        help="estimate the memory and the time that a recipe's config takes",
        description="Estimate what a recipe's config takes on each GPU: weights, gradients, "
        "optimizer, activations, loss, prior and edit pass, their peak, and the time of a step. "
        "Nothing is loaded; models whose sizes are not known here have their config read, from a "
        "folder or from the hub. Other arguments are fields of the config: --field value, as the "
        "recipes take them.",
        usage="toedit plan (--config FILE.yaml | --corpus TOKENS) [--field value ...] [options]",
        allow_abbrev=False,  # a field of the config must never be taken for one of these
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML, as the recipes take it")
    parser.add_argument(
        "--corpus",
        metavar="TOKENS",
        help="instead of a config: what editing a corpus of so many tokens once takes, as in 1T; "
        "fields: --prior, --edit_policy, --max_length, --document_length",
    )
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        help="the card, or cpu; default: what the config's own line '# plan for:' says, else h100",
    )
    parser.add_argument(
        "--gpus", type=positive, metavar="N", help="how many; default: as that line says, else 1"
    )
    parser.add_argument(
        "--accelerate",
        type=Path,
        metavar="FILE",
        help="config of accelerate; default: as that line says",
    )
    parser.add_argument(
        "--mfu",
        type=share,
        default=0.4,
        metavar="SHARE",
        help="of the card's peak that is reached, assumed; default: %(default)s",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures; -: to stdout, no table")
    parser.add_argument(
        "--header", action="store_true", help="print the lines for the top of the config instead"
    )
    parser.add_argument(
        "--write-header", action="store_true", help="write them into the config, in place"
    )
    parser.set_defaults(run=_run)
    _keep_unknown(parser)


def _keep_unknown(parser: Any) -> None:
    """Let arguments that are none of ours through, as `overrides`: fields of the config."""
    parse_known_args = parser.parse_known_args

    def parse(args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        namespace, rest = parse_known_args(args, namespace)
        namespace.overrides = rest
        return namespace, []

    parser.parse_known_args = parse


def _run(args: argparse.Namespace) -> None:
    from .run import run_plan  # late: `toedit --help` needs none of it

    run_plan(args)
