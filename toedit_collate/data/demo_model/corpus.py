"""The text of the demo from a file of the user's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice

from ..rows import Data
from ..sources import open_data
from ..tokens import check_values, format_of
from .topics import Corpus, Example, hold_out

MAX_DOCUMENTS = 20_000  # of a file; the rest is left unread


def read_corpus(source: str, split: str | None = None) -> Corpus:
    """Read documents of text or chats; one in eight is held out.

    Args:
        source: see `open_data`.
        split: of a folder with several, or of a hub dataset.

    Raises:
        UnusableError: it can't be read, or holds no documents of a known format.
    """
    data = open_data(source, split)
    examples = list(islice(_examples(data), MAX_DOCUMENTS))
    kinds = {tuple(example) for example in examples}
    if len(kinds) > 1:
        raise data.error(f"documents of {len(kinds)} formats {sorted(kinds)}; keep to one")
    if len(examples) < 2:
        raise data.error(
            f"{len(examples)} documents; the demo needs at least 2, to train on some and hold out "
            "others"
        )
    train, held_out = hold_out(examples, key=lambda example: json.dumps(example, sort_keys=True))
    first = "the first " if len(examples) == MAX_DOCUMENTS else ""
    name = f"{source}: {first}{len(train):,} documents to train on, {len(held_out):,} held out"
    return Corpus(name, train, held_out)


def _examples(data: Data) -> Iterator[Example]:
    """The columns of each document that the demo uses; empty documents are skipped."""
    for batch in data.batches():
        for row, name in zip(batch.rows, batch.names, strict=True):
            form = format_of(row)
            if form in (None, ("input_ids",)):
                raise data.error(
                    f"{name} has {sorted(row)}; the demo reads text, messages, or prompt and "
                    "completion: rename the columns"
                )
            assert form is not None
            example = {column: row[column] for column in form}
            last = example[form[-1]]
            if last.strip() if isinstance(last, str) else last != []:
                check_values(data, form, list(example.values()), name)
                yield example
