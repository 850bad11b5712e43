"""`toedit inspect`: what edits would do to data, or what a run with a journal did."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import options
from ..config.policies import POLICY_HELP
from ..errors import UnusableError

if TYPE_CHECKING:
    from ..inspection.inspecting import Inspection


def add_inspect(commands: Any) -> None:
    """Add `inspect` to the subcommands of an argparse parser."""
    parser = options.add_command(
        commands,
        "inspect",
        "see what policies would do to your data, before you train",
        "Show what one or several policies would do to your data, in one pass of the prior: how "
        "many tokens of each kind they select and change, documents with their edits, and a "
        "recommendation. With --journal: what a training run edited.",
        "toedit inspect --prior HuggingFaceTB/SmolLM2-135M-Instruct --data chats.jsonl \\\n"
        "      --html edits.html",
    )
    data = options.add_data(parser, required=True)
    data.value("--limit", "read N documents; 0: all", "N", options.non_negative, 500)
    options.add_reading(parser, max_length="the longest input of the prior", batch_tokens=4096)
    options.add_prior(parser)
    policy = options.Group(parser, "policy")
    policy.value(
        "--policy",
        f"{POLICY_HELP}; several are compared; default: paper, reference_code and distill",
        "POLICY",
        nargs="+",
        action="extend",
    )
    policy.value(
        "--protect",
        "tokens that no policy may edit: numbers, code, urls, latex, names or regex:..., "
        "separated by commas",
        "RULES",
    )
    policy.value(
        "--journal",
        "show what the run with this journal edited; --prior then only needs a tokenizer",
        "DIR",
        Path,
    )
    output = options.Group(parser, "output")
    output.value("--html", "write a page for the browser", "FILE", Path)
    options.add_color(output)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..data.files import write_text
    from ..inspection.terminal import as_text

    if args.html is not None:
        _check_can_write(args.html)
    seen = _inspect(args) if args.journal is None else _inspect_journal(args)
    print(as_text(seen, color=options.wants_color(args)), end="")
    if args.html is not None:
        write_text(args.html, seen.to_html(), "--html")
        print(f"Page: {args.html}")
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
    prior = open_prior(args.prior, **options.prior_options(args))
    try:
        return inspect_edits(
            prior, data, policies, limit=args.limit or None,
            preparation=options.preparation_of(args), batch_tokens=args.batch_tokens,
            progress=True,
        )  # fmt: skip
    except ValueError as error:  # no document, or the prior cannot score one
        raise UnusableError(f"--data {args.data}: {error}") from None


def _inspect_journal(args: argparse.Namespace) -> Inspection:
    from ..config.priors import open_tokenizer
    from ..data import examples, open_data
    from ..inspection.journals import inspect_journal
    from ..inspection.kinds import Reader
    from .journal import open_journal

    given = ("policy", "protect", "prior_aligned")
    unused = ", ".join(f"--{name.replace('_', '-')}" for name in given if getattr(args, name))
    if unused:
        raise UnusableError(f"{unused} cannot be used with --journal; remove it")
    if args.prior is None:
        raise UnusableError(
            "--prior is missing; name the tokenizer of the training run, by its folder or hub id"
        )
    journal = open_journal(args.journal, "--journal")
    tokenizer = open_tokenizer(args.prior, "--prior")
    prep = options.preparation_of(args)
    documents = examples(open_data(args.data, args.split), prep.set_up(tokenizer), prep)
    try:
        return inspect_journal(
            journal, documents, Reader(tokenizer), limit=args.limit or None,
            data=args.data,
        )  # fmt: skip
    except ValueError as error:
        raise UnusableError(f"--journal {args.journal}: {error}") from None


def _check_can_write(path: Path) -> None:
    """Before the prior's pass, which may take long."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UnusableError(f"--html {path}: cannot be written; name a file in an existing folder")
