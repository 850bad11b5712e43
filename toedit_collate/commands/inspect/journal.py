"""`toedit inspect --journal`: what was edited, per generation, in the documents of the data."""

from __future__ import annotations

import argparse

from ...errors import UnusableError, first_line
from ...inspection.documents import as_data, read_documents
from ...inspection.inspection import Inspection
from ...inspection.journals import inspect_journal as look
from ...inspection.kinds import Reader
from ...stores.journal import Journal
from ...stores.journal.files import list_files
from ...stores.journal.frames import DamagedJournalError


def inspect_journal(args: argparse.Namespace) -> Inspection:
    """Look into a journal.

    Raises:
        UnusableError: there is none, it is damaged, or the data are others.
    """
    _check_alone(args)
    if args.prior is None:
        raise UnusableError(
            "--prior is missing; name the tokenizer that training had, a folder or a hub id"
        )
    if not args.journal.is_dir() or not list_files(args.journal):
        raise UnusableError(
            f"--journal {args.journal}: holds no journal; name the folder that Journal(path) was "
            "given"
        )
    tokenizer = _open_tokenizer(args.prior)
    data = as_data(args.data, args.split)
    try:
        return look(
            Journal(args.journal),
            read_documents(
                data,
                tokenizer,
                max_length=args.max_length,
                assistant_only=args.assistant_only_loss,
                eos=args.eos,
            ),
            Reader(tokenizer),
            keep=max(args.keep, args.show),
            limit=args.limit or None,
            data=args.data,
        )
    except (ValueError, DamagedJournalError) as error:
        raise UnusableError(f"--journal {args.journal}: {error}") from None


def _check_alone(args: argparse.Namespace) -> None:
    """A journal says what was done: nothing of what would choose another edit has a part in it."""
    given = {
        "--policy": args.policy,
        "--protect": args.protect,
        "--find": args.find,
        "--own-tokens": args.own_tokens,
        "--prior-aligned": args.prior_aligned,
        "--order random": args.order == "random",
    }
    unused = [name for name, value in given.items() if value]
    if unused:
        raise UnusableError(
            f"{', '.join(unused)}: of no use with --journal, which shows what was edited in all of "
            "the data; leave it out"
        )


def _open_tokenizer(name: str) -> object:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # of many kinds, by what is wrong with its files
        raise UnusableError(
            f"--prior {name}: its tokenizer can't be loaded ({first_line(error)}); name "
            "a folder with a tokenizer, or a model of the hub"
        ) from None
