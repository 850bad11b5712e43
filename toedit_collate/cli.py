"""The `toedit` command: finds the subcommand that was asked for, and runs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .demo import DemoError, add_demo


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `toedit` command.

    Args:
        argv: its arguments; None: those of this process.

    Returns:
        The exit status: 0, or 2 where the arguments or the data can't be used.

    Raises:
        SystemExit: `--help`, or arguments that argparse refuses (status 2).
    """
    parser = argparse.ArgumentParser(
        prog="toedit",
        description="Token editing (ToEdit): a frozen prior resamples the tokens of training "
        "batches that it finds too easy.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_demo(commands)
    args = parser.parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # a terminal of another encoding is no reason to stop
        sys.stdout.reconfigure(errors="replace")
    try:
        args.run(args)
    except DemoError as error:
        print(f"toedit {args.command}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
