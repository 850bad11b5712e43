"""The options of `toedit theory`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ...diagnostics.theory import World

_HELP = {
    "dimension": "d, of the inputs",
    "samples": "T, rows of data",
    "noise": "sigma, of the labels",
    "edits": "n, how often labels are edited",
    "runs": "independent worlds; standard errors go down with their root",
    "seed": "of all of them",
}


def add_theory(commands: Any) -> None:
    """Add `theory` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "theory",
        help="simulate the paper's linear process: does editing bound the test error?",
        description="Simulate the process of the paper's section 3.2 (fit, resample, edit, refit) "
        "and set what comes out beside the bounds of Eqs. 4 to 6 and Theorem 1's closed form. The "
        "standard setting takes one or two minutes on a CPU.",
    )
    for field in dataclasses.fields(World):
        parser.add_argument(
            f"--{field.name}",
            type=float if field.name == "noise" else int,
            default=field.default,
            metavar="X" if field.name == "noise" else "N",
            help=f"{_HELP[field.name]}; default: %(default)s",
        )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="also write theory.json, theory.png and theory.svg; figures need matplotlib",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from .run import run_theory

    return run_theory({name: getattr(args, name) for name in _HELP}, args.output)
