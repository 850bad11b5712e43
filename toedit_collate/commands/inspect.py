"""`toedit inspect`: what edits would do to data, or what a run with a journal did."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.options import (
    add_color,
    add_data,
    add_prior,
    add_reading,
    add_seed,
    positive,
    preparation_of,
    prior_options,
    wants_color,
    whole,
)
from ..config.policies import POLICY_HELP
from ..errors import UnusableError

if TYPE_CHECKING:
    from ..inspection.inspection import Inspection


def add_inspect(commands: Any) -> None:
    """Add `inspect` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "inspect",
        help="see what policies would do to your data, before you train",
        description="Show what one or several policies would do to your data, in one pass of the "
        "prior: how many tokens of each kind they select and change, documents with their edits, "
        "and a recommendation. With --journal: what a training run edited. Writes nothing but the "
        "files of --html and --json.",
        epilog="example: toedit inspect --prior HuggingFaceTB/SmolLM2-135M-Instruct --data "
        "chats.jsonl --html edits.html",
    )
    add_data(parser, required=True)
    add_prior(parser)
    parser.add_argument(
        "--policy",
        nargs="+",
        action="extend",
        metavar="POLICY",
        help=f"{POLICY_HELP}; several are compared; default: paper, reference_code and distill",
    )
    parser.add_argument(
        "--protect",
        metavar="RULES",
        help="tokens that no policy may edit: numbers, code, urls, latex, names or regex:..., "
        "separated by commas",
    )
    parser.add_argument(
        "--journal",
        type=Path,
        metavar="DIR",
        help="show what the run with this journal edited; --prior then only needs a tokenizer",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page for the browser")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and edits")
    _add_documents(parser)
    parser.set_defaults(run=_run)


def _add_documents(parser: Any) -> None:
    group = parser.add_argument_group("documents")
    group.add_argument(
        "--limit",
        type=whole,
        default=500,
        metavar="N",
        help="read N documents; 0: all; default: %(default)s",
    )
    group.add_argument(
        "--order",
        choices=("edited", "file", "random"),
        default="edited",
        help="which documents to show: those with the most edits, the first, or a random choice; "
        "default: %(default)s",
    )
    add_seed(group, "--order random, which also chooses the documents to read")
    group.add_argument("--find", metavar="REGEX", help="only documents whose text matches")
    group.add_argument(
        "--show",
        type=whole,
        default=2,
        metavar="N",
        help="documents to show in the terminal; default: %(default)s",
    )
    group.add_argument(
        "--keep",
        type=positive,
        default=200,
        metavar="N",
        help="documents to write to --html and --json; default: %(default)s",
    )
    add_reading(parser, max_length="the longest input of the prior", batch_tokens=4096)
    add_color(group)


def _run(args: argparse.Namespace) -> int:
    from ..data.files import as_json, write_text
    from ..inspection.terminal import as_text

    for name, path in (("--html", args.html), ("--json", args.json)):
        if path is not None:
            _check_can_write(name, path)
    seen = _inspect(args) if args.journal is None else _inspect_journal(args)
    print(as_text(seen, color=wants_color(args), num_documents=args.show), end="")
    if args.html is not None:
        write_text(args.html, seen.to_html(), "--html")
        print(f"Page: {args.html}")
    if args.json is not None:
        write_text(args.json, as_json(seen.to_dict()) + "\n", "--json")
        print(f"Figures: {args.json}")
    return 0


def _inspect(args: argparse.Namespace) -> Inspection:
    from ..config.priors import open_prior
    from ..data import open_data
    from ..inspection.advice import LABELS, ONE_LABEL
    from ..inspection.inspecting import inspect_edits, named_policies

    if args.prior is None:
        raise UnusableError("--prior is missing; name a causal language model, or --journal DIR")
    changes = {} if args.protect is None else {"protect": args.protect}
    labels = LABELS if args.prior_aligned is None else ONE_LABEL
    try:
        policies = named_policies(args.policy or ("paper", "reference_code", labels), **changes)
    except (TypeError, ValueError) as error:
        raise UnusableError(f"--policy: {error}") from None
    data = open_data(args.data, args.split)
    prior = open_prior(args.prior, **prior_options(args))
    try:
        return inspect_edits(
            prior, data, policies, limit=args.limit or None, keep=max(args.keep, args.show),
            order=args.order, find=args.find, seed=args.seed, preparation=preparation_of(args),
            batch_tokens=args.batch_tokens, progress=True,
        )  # fmt: skip
    except ValueError as error:  # no such text, or the prior cannot score it
        raise UnusableError(f"--data {args.data}: {error}") from None


def _inspect_journal(args: argparse.Namespace) -> Inspection:
    from ..config.priors import open_tokenizer
    from ..data import examples, open_data
    from ..inspection.journals import inspect_journal
    from ..inspection.kinds import Reader
    from .journal import open_journal

    given = {
        "--policy": args.policy,
        "--protect": args.protect,
        "--find": args.find,
        "--prior-aligned": args.prior_aligned,
        "--order random": args.order == "random",
    }
    unused = ", ".join(name for name, value in given.items() if value)
    if unused:
        raise UnusableError(f"{unused} cannot be used with --journal; remove it")
    if args.prior is None:
        raise UnusableError(
            "--prior is missing; name the tokenizer of the training run, by its folder or hub id"
        )
    journal = open_journal(args.journal, "--journal")
    tokenizer = open_tokenizer(args.prior, "--prior")
    prep = preparation_of(args)
    documents = examples(open_data(args.data, args.split), prep.set_up(tokenizer), prep)
    try:
        return inspect_journal(
            journal, documents, Reader(tokenizer), keep=max(args.keep, args.show),
            limit=args.limit or None, data=args.data,
        )  # fmt: skip
    except ValueError as error:
        raise UnusableError(f"--journal {args.journal}: {error}") from None


def _check_can_write(option: str, path: Path) -> None:
    """Before the prior's pass, which may take long, rather than after it."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UnusableError(
            f"{option} {path}: cannot be written; name a file in an existing folder"
        )
