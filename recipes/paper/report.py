"""Figures and tables of one or several sets of data: the paper's, on yours.

python recipes/paper/report.py --prior NAME --data FILE [--data FILE] --output DIR
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes: `common`, `paper`

from common.figures import check_can_draw

from paper.data_report import SetSettings, measure_set, write_report
from paper.data_report.baselines import check_can_filter
from paper.data_report.measure import Measured
from toedit_collate.config.guard import run_guarded
from toedit_collate.config.options import (
    DATA_HELP,
    add_prior,
    add_reading,
    add_seed,
    positive,
    preparation_of,
    prior_options,
)
from toedit_collate.config.priors import open_prior
from toedit_collate.errors import UnusableError
from toedit_collate.inspection.inspecting import describe
from toedit_collate.inspection.kinds import Reader
from toedit_collate.inspection.reading import as_data

_NAMED = re.compile(r"(?P<name>[^=/\\]+)=(?P<file>.+)")


def make_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        prog="report.py",
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
    add_reading(parser, max_length="what the prior can take", batch_tokens=16_384)
    add_seed(parser, "samples")
    return parser


def run_report(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Make a report.

    Raises:
        UnusableError: an argument can't be used, or the data can't.
    """
    map_method = _check(args)
    named = _names(args.data)
    opened = {name: as_data(source) for name, source in named.items()}  # before the prior loads
    prior = open_prior(args.prior, **options)
    settings = SetSettings(
        limit=args.limit, preparation=preparation_of(args), batch_tokens=args.batch_tokens,
        seed=args.seed, progress=True,
    )  # fmt: skip
    sets = []
    for name, data in opened.items():
        begin = time.monotonic()
        try:
            sets.append(measure_set(prior, data, settings, name=name))
        except ValueError as error:
            raise UnusableError(f"--data {named[name]}: {error}") from None
        _print_set(sets[-1], time.monotonic() - begin)
    reader = Reader(prior.tokenizer)
    try:
        record = write_report(
            sets, args.output, reader=reader, prior=describe(prior), map_method=map_method,
            with_baselines=args.baselines, seed=args.seed,
        )  # fmt: skip
    except OSError as error:
        raise UnusableError(f"--output {args.output}: can't be written ({error})") from None
    for warning in record["warnings"]:
        print(f"Warning: {warning}")
    print(f"{args.output / 'report.html'}, report.json, figures/*.png, *.svg, *.csv")
    return 0


def _check(args: argparse.Namespace) -> str | None:
    """See that everything is there that is needed in the end; which map to draw."""
    map_method = None if args.map == "none" else args.map
    try:
        check_can_draw()
        if map_method == "tsne" or args.baselines:
            check_can_filter()
        args.output.mkdir(parents=True, exist_ok=True)
    except ImportError as error:
        raise UnusableError(str(error)) from None
    except OSError as error:
        raise UnusableError(
            f"--output {args.output}: can't be made ({error}); name a folder"
        ) from None
    return map_method


def _names(sources: list[str]) -> dict[str, str]:
    """Sources by names that differ: as given, or of their files."""
    named: dict[str, str] = {}
    for source in sources:
        given = _NAMED.fullmatch(source)
        if given and not Path(source).exists():
            name, source = given["name"], given["file"]
        else:
            name = Path(source).stem or source
        if name in named:
            raise UnusableError(
                f"--data {source}: there is a set {name!r} already; name it: --data NAME={source}"
            )
        named[name] = source
    return named


def _print_set(of: Measured, seconds: float) -> None:
    index, low, high = of.ngrams.concentration(2)
    interval = "" if math.isnan(low) else f" ({low:.2f} to {high:.2f})"
    documents = f"{of.num_documents:,} document{'s' * (of.num_documents != 1)}"
    print(
        f"{of.name}: {documents}, {of.num_tokens:,} tokens in {seconds:,.1f} s; "
        f"perplexity {of.probabilities.perplexity:.1f}; P >= 0.99: {of.share_from(0.99):.2%}, "
        f">= 0.999: {of.share_from(0.999):.2%}; concentration of pairs {index:.2f}{interval}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit status."""
    args = make_parser().parse_args(argv)
    return run_guarded("report.py", lambda: run_report(args, prior_options(args)))


if __name__ == "__main__":
    sys.exit(main())
