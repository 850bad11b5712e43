"""Opens what is named on the command line: a journal, a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...errors import UnusableError, first_line
from ...stores.journal import Journal
from ...stores.journal.files import scan_files
from ...stores.segments import DamagedFileError


def use_one_thread() -> None:
    """Let torch use one: on batches this small, several cost more than they bring."""
    torch.set_num_threads(1)


def check_journal(path: Path) -> None:
    """See that there is a journal in a folder.

    Raises:
        UnusableError: there is none.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UnusableError(f"PATH {path} {what}; name the folder that Journal(path) was given")
    if not scan_files(path)[0]:
        raise UnusableError(
            f"PATH {path} is a folder without journal files (generation-*.safetensors); name the "
            "folder that Journal(path) was given, and see whether the run had a journal at all"
        )


def open_journal(path: Path) -> Journal:
    """A journal with at least one generation.

    Raises:
        UnusableError: there is none, or it is damaged.
    """
    check_journal(path)
    try:
        journal = Journal(path)
        if not journal.generations:
            raise UnusableError(
                f"PATH {path} holds no edit yet; wait until the run has written some (it does so "
                "at each checkpoint, and about once a minute)"
            )
    except DamagedFileError as error:
        raise UnusableError(f"{error}. `toedit journal verify {path}` checks all files") from None
    except OSError as error:
        raise UnusableError(f"PATH {path}: can't be read ({error})") from None
    return journal


def check_generation(journal: Journal, generation: int, *, lowest: int) -> None:
    """See that a journal holds a generation.

    Raises:
        UnusableError: it doesn't.
    """
    held = journal.generations
    if generation not in held and not (generation == 0 and lowest == 0):
        source = "0 (the source) or " if lowest == 0 else ""
        raise UnusableError(
            f"--generation {generation}: not in the journal; write {source}one of {held}"
        )


def open_tokenizer(name: str | None) -> Any:
    """The tokenizer of that name; None for None.

    Raises:
        UnusableError: it can't be loaded.
    """
    if name is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # of many kinds, by what is wrong with its files
        raise UnusableError(
            f"--tokenizer {name}: can't be loaded ({first_line(error)}); name a folder with a "
            "tokenizer, or a model of the hub"
        ) from None
