"""The plan from end to end: what was asked for, the estimate, the report."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...config.fields import read_fields
from ...config.quiet import quiet
from ...data.files import as_json, write_json
from ...errors import UnusableError
from .cards import find_card
from .corpus import format_corpus, plan_corpus
from .estimate import estimate
from .header import Place, place_line, read_place, write_header
from .table import format_table, header_lines, record


def run_plan(args: argparse.Namespace) -> None:
    """Estimate, and print.

    Args:
        args: of `add_plan`.

    Raises:
        UnusableError: an argument or the config can't be used.
    """
    if (args.config is None) == (args.corpus is None):
        raise UnusableError("name a config (--config FILE.yaml), or a corpus (--corpus 1T)")
    if args.corpus is not None:
        _run_corpus(args)
        return
    place = _place(args)
    with quiet():
        plan = estimate(
            args.config,
            find_card(place.card),
            overrides=args.overrides,
            gpus=place.gpus,
            accelerate=place.accelerate,
            mfu=args.mfu,
        )
    if args.write_header:
        lines = [place_line(place, plan.sharding.num_gpus, args.config), *header_lines(plan)]
        write_header(args.config, lines)
        print(f"{args.config}: {len(lines)} lines written")
        return
    if args.header:
        print("\n".join(header_lines(plan)))
        return
    if args.json != "-":
        print(format_table(plan))
    if args.json is not None:
        _write(args.json, record(plan))


def _run_corpus(args: argparse.Namespace) -> None:
    card = find_card(args.gpu or "h100")
    fields = read_fields(args.overrides)
    with quiet():
        plan = plan_corpus(args.corpus, card, args.gpus or 1, args.mfu, fields)
    if args.json != "-":
        print(format_corpus(plan, card, args.mfu))
    if args.json is not None:
        _write(args.json, asdict(plan))


def _place(args: argparse.Namespace) -> Place:
    place = read_place(args.config)
    if args.accelerate is not None:  # another file, another number
        place = replace(place, accelerate=args.accelerate, gpus=None)
    return replace(place, card=args.gpu or place.card, gpus=args.gpus or place.gpus)


def _write(path: str, figures: dict[str, Any]) -> None:
    if path == "-":
        print(as_json(figures))
    else:
        write_json(Path(path), figures, "--json")
