"""Figures and tables of one or several sets of data: the paper's, on yours.

python recipes/paper/report.py --prior NAME --data FILE [--data FILE] --output DIR
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes: `common`, `paper`

from common.figures import check_can_draw, save_figure

from paper import draw
from paper.compare import check_can_map, compare_baselines, coverage, warnings_of
from paper.measure import Measured, SetSettings, measure_set
from paper.page import as_page
from toedit_collate.config.console import run_guarded
from toedit_collate.config.options import (
    DATA_HELP,
    Group,
    add_prior,
    add_reading,
    add_seed,
    positive,
    preparation_of,
    prior_options,
)
from toedit_collate.config.priors import open_prior
from toedit_collate.data.files import as_json, write_text
from toedit_collate.errors import UnusableError
from toedit_collate.inspection.inspecting import describe
from toedit_collate.inspection.kinds import Reader
from toedit_collate.inspection.reading import as_data

_NAMED = re.compile(r"(?P<name>[^=/\\]+)=(?P<file>.+)")
Rows = list[list[Any]]


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
        help="compare the filters of section 2.2 on the later sets",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="look at so many documents of each; default: all",
    )
    add_reading(parser, max_length="what the prior can take", batch_tokens=16_384)
    add_seed(Group(parser, "random numbers"), "samples")
    return parser


def run_report(args: argparse.Namespace, options: dict[str, Any]) -> None:
    """Make a report.

    Raises:
        UnusableError: an argument can't be used, or the data can't.
    """
    check_can_draw()
    if args.map == "tsne":
        check_can_map()
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnusableError(
            f"--output {args.output}: can't be made ({error}); name a folder"
        ) from None
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
    record = write_report(
        sets, args.output, reader=Reader(prior.tokenizer), prior=describe(prior),
        map_method=None if args.map == "none" else args.map, with_baselines=args.baselines,
        seed=args.seed,
    )  # fmt: skip
    for warning in record["warnings"]:
        print(f"Warning: {warning}")
    print(f"{args.output / 'report.html'}, report.json, figures/*.png, *.svg, *.csv")


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


def write_report(
    sets: Sequence[Measured],
    output: Path,
    *,
    reader: Reader,
    prior: str,
    map_method: str | None = "pca",
    with_baselines: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Write what was measured of one or several sets; returns the content of report.json.

    Args:
        sets: the first is what the others are compared with.
        output: a folder; made if absent, files of an older report are replaced.
        reader: makes text of token ids.
        prior: what scored, in words.
        map_method: of the map of documents: "pca", "tsne", which needs scikit-learn, or None.
        with_baselines: compare the filters of section 2.2.
        seed: of map and filters.

    Raises:
        UnusableError: matplotlib or scikit-learn is not installed, or the folder can't be written.
    """
    baselines = []
    if with_baselines:
        pools = sets[1:] or sets
        baselines = [one for pool in pools for one in compare_baselines(sets[0], pool, seed=seed)]
    covered = [coverage(sets[0].log_perplexity, of.log_perplexity) for of in sets]
    warnings = warnings_of(sets)
    tables = {
        "sets": _overview(sets, covered),
        "deciles": _deciles(sets),
        "what_if": _whatif(sets),
        "bigrams": _bigrams(sets, reader),
    }
    if baselines:
        tables["baselines"] = [
            ["set", "filter", "kept", "perplexity", "coverage of the first", "concentration"],
            *(
                [one["pool"], one["name"], f"{one['kept']:,}", f"{one['perplexity']:.1f}",
                 f"{one['coverage']:.0%}", f"{one['concentration']:.2f}"]
                for one in baselines
            ),
        ]  # fmt: skip
    drawn = {
        "deciles": draw.draw_deciles(sets),
        "histogram": draw.draw_histogram(sets),
        "perplexity": draw.draw_perplexity(sets),
        "ngrams": draw.draw_buckets(sets),
        "bigrams": draw.draw_bigrams(sets, reader),
        "what_if": draw.draw_whatif(sets),
    }
    if map_method is not None:
        try:
            points = draw.embedding_map(sets, map_method, seed=seed)
        except ValueError as error:  # too little data; the rest can be shown
            warnings.append(f"There is no map: {error}.")
        else:
            drawn["map"] = draw.draw_map(sets, points, map_method)
            places = zip(sets, points, strict=True)
            tables["map"] = [["set", "x", "y"]]
            tables["map"] += [[of.name, *point] for of, some in places for point in some]
    folder = output / "figures"
    for name, figure in drawn.items():
        save_figure(figure, folder, name)
    for name, rows in tables.items():
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows(rows)
        write_text(folder / f"{name}.csv", lines.getvalue())
    record = {
        "prior": prior,
        "sets": [of.record() for of in sets],
        "coverage": covered,
        "baselines": baselines,
        "warnings": warnings,
    }
    text = as_json(record)
    write_text(output / "report.json", text + "\n")
    # On a screen, sets are columns: there are fewer sets than figures for each.
    shown = {**tables, "sets": [list(row) for row in zip(*tables["sets"], strict=True)]}
    shown["what_if"] = _whatif_of_sets(sets)
    numbers = {name: f"{name}.csv" if name in tables else None for name in drawn}
    write_text(output / "report.html", as_page(warnings, shown, numbers, prior))
    clean: dict[str, Any] = json.loads(text)
    return clean


def _overview(sets: Sequence[Measured], covered: list[float]) -> Rows:
    head = [
        "set", "documents", "tokens", "with a label", "perplexity",
        "P >= 0.99", "P >= 0.999",
        "coverage of the first", "entropy of tokens (bits)", "entropy of pairs (bits)",
        "concentration of tokens", "concentration of pairs (95 %)", "top 40 pairs",
        "top 64 pairs",
    ]  # fmt: skip
    rows: Rows = [head]
    for of, reached in zip(sets, covered, strict=True):
        ngrams = of.ngrams.record()
        one, two = ngrams["unigrams"], ngrams["bigrams"]
        low, high = two["concentration_low"], two["concentration_high"]
        rows.append(
            [
                of.name, f"{of.num_documents:,}", f"{of.num_tokens:,}",
                f"{of.probabilities.total:,}", f"{of.probabilities.perplexity:.1f}",
                f"{of.share_from(0.99):.2%}", f"{of.share_from(0.999):.2%}", f"{reached:.0%}",
                f"{one['entropy_bits']:.2f}", f"{two['entropy_bits']:.2f}",
                f"{one['concentration']:.1f}",
                f"{two['concentration']:.2f}"
                + ("" if math.isnan(low) else f" ({low:.2f} to {high:.2f})"),
                f"{ngrams['top_40_bigrams_share']:.1%}", f"{ngrams['top_64_bigrams_share']:.1%}",
            ]
        )  # fmt: skip
    return rows


def _deciles(sets: Sequence[Measured]) -> Rows:
    rows: Rows = [["P", *(of.name for of in sets)]]
    for i in range(10):
        shares = (of.deciles[i] / max(int(of.deciles.sum()), 1) for of in sets)
        rows.append([f"{i / 10:.1f} to {(i + 1) / 10:.1f}", *(f"{100 * s:.2f} %" for s in shares)])
    return rows


def _whatif(sets: Sequence[Measured]) -> Rows:
    rows: Rows = [
        ["set", "table", "setting", "selected", "would change", "standard error",
         "KL (nats a token)", "standard error"]
    ]  # fmt: skip
    for of in sets:
        for one in of.whatif.results():
            rows.append(
                [
                    of.name, one["table"], one["setting"], f"{one['selected_share']:.3%}",
                    f"{one['changed_share']:.4%}", f"{one['changed_share_error']:.4%}",
                    f"{one['kl']:.3g}", f"{one['kl_error']:.2g}",
                ]
            )  # fmt: skip
    return rows


def _whatif_of_sets(sets: Sequence[Measured]) -> Rows:
    rows: Rows = [["setting", *(of.name for of in sets)]]
    for found in zip(*(of.whatif.results() for of in sets), strict=True):
        name = f"{found[0]['table']}: {found[0]['setting']}"
        rows.append([name, *(f"{one['changed_share']:.4%}" for one in found)])
    return rows


def _bigrams(sets: Sequence[Measured], reader: Reader) -> Rows:
    rows: Rows = [["set", "rank", "pair", "share"]]
    for of in sets:
        total = max(int(of.ngrams.counts[2].sum()), 1)
        for rank, (pair, count) in enumerate(of.ngrams.top_bigrams(64), 1):
            rows.append([of.name, rank, draw.bigram_text(reader, pair), f"{count / total:.4%}"])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit status."""
    args = make_parser().parse_args(argv)
    return run_guarded("report.py", lambda: run_report(args, prior_options(args)))


if __name__ == "__main__":
    sys.exit(main())
