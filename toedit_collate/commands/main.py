"""The `toedit` command: reads the arguments, and runs a subcommand."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

from ..config.console import run_guarded, shorten_ctrl_c


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `toedit` command, and return its exit status.

    0: it is done; 1: `toedit journal verify` found problems; 2: the arguments or the data cannot be
    used. argparse raises SystemExit after `--help` and at unknown arguments.
    """
    shorten_ctrl_c()
    args = _make_parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # the terminal may have another encoding
        sys.stdout.reconfigure(errors="replace")
    return run_guarded(f"toedit {args.command}", lambda: args.run(args))


def _make_parser() -> argparse.ArgumentParser:
    # They import torch, which takes seconds.
    from .apply import add_apply
    from .bench import add_bench
    from .demo import add_demo
    from .inspect import add_inspect
    from .journal import add_journal
    from .plan import add_plan
    from .recipes import add_recipes
    from .sft import add_sft

    parser = argparse.ArgumentParser(
        prog="toedit",
        description="Token editing (ToEdit): a frozen prior resamples the tokens of training "
        "batches that it finds too easy.",
    )
    version = importlib.metadata.version("toedit_collate")
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        add_demo, add_bench, add_plan, add_sft, add_apply, add_inspect, add_journal, add_recipes,
    ):  # fmt: skip
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
