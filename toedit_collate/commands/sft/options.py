"""The place of `toedit sft` among the commands; its options are read by TRL's parser."""

from __future__ import annotations

import argparse
from typing import Any


def add_sft(commands: Any) -> None:
    """Add `sft` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "sft",
        help="TRL's own SFT script, with all of its options, on token-edited batches",
        add_help=False,  # --help shows TRL's options and ours, from the parser that reads them
        allow_abbrev=False,
    )
    parser.set_defaults(run=_run)
    _pass_everything_on(parser)


def _pass_everything_on(parser: Any) -> None:
    """Leave all arguments, as they are, in `rest`."""

    def parse_known_args(args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        namespace = argparse.Namespace() if namespace is None else namespace
        namespace.run, namespace.rest = _run, list(args or [])
        return namespace, []

    parser.parse_known_args = parse_known_args


def _run(args: argparse.Namespace) -> None:
    from .run import run_sft  # late: `toedit --help` needs none of it

    run_sft(args.rest)
