"""The `toedit` command: finds the subcommand that was asked for, and runs it."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

from ..config.guard import run_guarded, say_in_a_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `toedit` command.

    A command sets `run`, which takes the parsed arguments and returns its exit status, or None
    for 0.

    Args:
        argv: its arguments; None: those of this process.

    Returns:
        The exit status: 0, or 2 where the arguments or the data can't be used; 1 is what
        `toedit journal verify` says of a journal that is not sound.

    Raises:
        SystemExit: `--help`, or arguments that argparse refuses (status 2).
    """
    try:
        args = _make_parser().parse_args(argv)
    except KeyboardInterrupt as error:
        say_in_a_line(error)
        raise
    if hasattr(sys.stdout, "reconfigure"):  # a terminal of another encoding is no reason to stop
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
    add_demo(commands)
    add_bench(commands)
    add_plan(commands)
    add_sft(commands)
    add_apply(commands)
    add_inspect(commands)
    add_journal(commands)
    add_recipes(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
