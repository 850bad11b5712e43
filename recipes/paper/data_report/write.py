"""A report's folder: figures (PNG and SVG), tables (CSV), report.json and report.html."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import figures

from toedit_collate.data.files import write_text
from toedit_collate.inspection.kinds import Reader

from .baselines import Baseline, compare_baselines
from .compare import coverage, warnings_of
from .draw import (
    bigram_text,
    draw_bigrams,
    draw_buckets,
    draw_histogram,
    draw_map,
    draw_perplexity,
    draw_whatif,
)
from .html import as_page
from .map import embedding_map
from .measure import Measured

Rows = list[list[Any]]


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
    """Write what was measured of one or several sets.

    Args:
        sets: the first is what the others are compared with.
        output: a folder; made if it is not there, files of an older report are replaced.
        reader: makes text of token ids.
        prior: what scored, in words.
        map_method: of the map of documents: "pca", "tsne", which needs scikit-learn, or None.
        with_baselines: compare the filters of section 2.2; needs scikit-learn.
        seed: of map and filters.

    Returns:
        What is in report.json.

    Raises:
        ImportError: matplotlib or scikit-learn is not installed.
        OSError: the folder can't be written.
    """
    baselines = []
    if with_baselines:
        pools = sets[1:] or sets
        baselines = [one for pool in pools for one in compare_baselines(sets[0], pool, seed=seed)]
    covered = [coverage(sets[0].log_perplexity, of.log_perplexity) for of in sets]
    warnings = warnings_of(sets)
    points = None
    if map_method is not None:
        try:
            points = embedding_map(list(sets), map_method, seed=seed)
        except ValueError as error:  # too little data; the rest can be told
            warnings.append(f"There is no map: {error}.")
    record = {
        "prior": prior,
        "sets": [of.record() for of in sets],
        "coverage": covered,
        "baselines": [dataclasses.asdict(one) for one in baselines],
        "warnings": warnings,
    }
    tables = {
        "deciles": _deciles(sets),
        "sets": _overview(sets, covered),
        "what_if": _whatif(sets),
        "bigrams": _bigrams(sets, reader),
    }
    if baselines:
        tables["baselines"] = _baselines(baselines)
    drawn = {
        "histogram": draw_histogram(sets),
        "perplexity": draw_perplexity(sets),
        "ngrams": draw_buckets(sets),
        "bigrams": draw_bigrams(sets, reader),
        "what_if": draw_whatif(sets),
    }
    if map_method is not None and points is not None:
        drawn["map"] = draw_map(sets, points, map_method)
        tables["map"] = [
            ["set", "x", "y"],
            *([of.name, *point] for of, some in zip(sets, points, strict=True) for point in some),
        ]
    folder = output / "figures"
    for name, figure in drawn.items():
        figures.save_figure(figure, folder, name)
    for name, rows in tables.items():
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows(rows)
        write_text(folder / f"{name}.csv", lines.getvalue())
    clean = _without_nan(record)
    write_text(output / "report.json", json.dumps(clean, indent=1) + "\n")
    write_text(output / "report.html", as_page(warnings, tables, list(drawn), prior))
    return clean


def _overview(sets: Sequence[Measured], covered: list[float]) -> Rows:
    head = [
        "set", "documents", "read by the prior", "tokens", "with a label", "perplexity",
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
                of.name, f"{of.num_documents:,}", f"{of.num_scored:,}", f"{of.num_tokens:,}",
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


def _bigrams(sets: Sequence[Measured], reader: Reader) -> Rows:
    rows: Rows = [["set", "rank", "pair", "share"]]
    for of in sets:
        total = max(int(of.ngrams.counts[2].sum()), 1)
        for rank, (pair, count) in enumerate(of.ngrams.top_bigrams(64), 1):
            rows.append([of.name, rank, bigram_text(reader, pair), f"{count / total:.4%}"])
    return rows


def _baselines(baselines: list[Baseline]) -> Rows:
    head = ["set", "filter", "kept", "perplexity", "coverage of the first", "concentration"]
    return [
        head,
        *(
            [one.pool, one.name, f"{one.kept:,}", f"{one.perplexity:.1f}", f"{one.coverage:.0%}",
             f"{one.concentration:.2f}"]
            for one in baselines
        ),
    ]  # fmt: skip


def _without_nan(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
