"""`toedit inspect`: look, print, and write page and JSON."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from ...config.options import wants_color
from ...config.priors import open_prior
from ...data.files import write_text
from ...errors import UnusableError
from ...inspection.documents import as_data
from ...inspection.inspecting import inspect_edits
from ...inspection.inspection import Inspection
from ...inspection.naming import named_policies
from ...inspection.terminal import show

DEFAULT_POLICIES = ("paper", "reference_code", "threshold=0.5")


def run_inspect(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Inspect data, or a journal.

    Raises:
        UnusableError: an argument can't be used, or the data can't.
    """
    for name, path in (("--html", args.html), ("--json", args.json)):
        if path is not None:
            _check_can_write(name, path)
    seen = _look(args, options) if args.journal is None else _look_into_journal(args)
    color = wants_color(args)
    print(show(seen, color=color, num_documents=args.show), end="")
    if args.html is not None:
        _write("--html", args.html, seen.to_html())
    if args.json is not None:
        _write("--json", args.json, json.dumps(seen.to_dict(), indent=1, allow_nan=False) + "\n")
    return 0


def _look(args: argparse.Namespace, options: dict[str, Any]) -> Inspection:
    if args.prior is None:
        raise UnusableError("--prior is missing; name a causal language model, or --journal DIR")
    changes = {} if args.protect is None else {"protect": args.protect}
    try:
        policies = named_policies(args.policy or DEFAULT_POLICIES, **changes)
    except (TypeError, ValueError) as error:
        raise UnusableError(f"--policy: {error}") from None
    data = as_data(args.data, args.split)
    prior = open_prior(args.prior, **options)
    if args.own_tokens and prior.unaligned is prior:
        raise UnusableError(
            "--own-tokens: these are the prior's own tokens; add --prior-aligned TOKENIZER, of "
            "another kind"
        )

    def look(through: Any) -> Inspection:
        return inspect_edits(
            through, data, policies, limit=args.limit or None, keep=max(args.keep, args.show),
            order=args.order, find=args.find, seed=args.seed, max_length=args.max_length,
            assistant_only=args.assistant_only_loss, batch_tokens=args.batch_tokens, progress=True,
        )  # fmt: skip

    try:
        seen = look(prior)
        if args.own_tokens:
            seen.own = look(prior.unaligned)
        return seen
    except ValueError as error:  # no such text, or the prior can't score it
        raise UnusableError(f"--data {args.data}: {error}") from None


def _look_into_journal(args: argparse.Namespace) -> Inspection:
    from .journal import inspect_journal

    return inspect_journal(args)


def _check_can_write(option: str, path: Path) -> None:
    """Before a long pass, not behind it."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UnusableError(
            f"{option} {path}: can't be written; name a file in a folder that is there"
        )


def _write(option: str, path: Path, text: str) -> None:
    write_text(path, text, option)
    print(f"{path}: {len(text.encode()):,} bytes")
