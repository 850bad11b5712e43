"""The options of `toedit report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...tools.options import DATA_HELP, add_prior, add_reading, add_seed, positive, prior_options


def add_report(commands: Any) -> None:
    """Add `report` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "report",
        help="figures and tables of one or several sets of data: the paper's, on yours",
        description="Read each set once with the prior, and write figures (PNG, SVG), tables (CSV, "
        "JSON) and a page: probabilities of tokens, perplexities of documents and what the other "
        "sets cover of the first, concentration of n-grams, a map of documents, what the settings "
        "of Tables 5 to 7 would change, and KL(edited || original).",
    )
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="[NAME=]FILE",
        help=DATA_HELP + "; give it several times: the first set is what others are compared with",
    )
    add_prior(parser, required=True)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="report.html and the rest"
    )
    parser.add_argument(
        "--map",
        choices=("pca", "tsne", "none"),
        default="pca",
        help="of the documents; tsne needs scikit-learn; default: %(default)s",
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="compare the filters of section 2.2 on the later sets; needs scikit-learn",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="look at so many documents of each; default: all",
    )
    add_reading(parser, max_length="what the prior can take", batch_tokens=16_384, eos=False)
    add_seed(parser, "samples")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from .run import run_report  # late: `toedit --help` needs none of it

    return run_report(args, prior_options(args))
