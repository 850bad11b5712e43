"""Every document of the data, replayed through all generations."""

from __future__ import annotations

from typing import Any

from ...data import Preparation, find_documents, open_data, tokenize
from ...data.documents import check_known
from ...data.revise import replay
from ...errors import UnusableError
from ...stores.journal import Journal


def replay_data(
    journal: Journal, path: str, tokenizer: Any, split: str | None, prep: Preparation
) -> list[str]:
    """Replay a data file, print a line about it, and return the documents that could not be.

    Raises:
        UnusableError: the file can't be used, or none of its documents is known.
    """
    data = open_data(path, split)
    generations = journal.generations
    known = dict.fromkeys(generations, 0)
    num_documents = 0
    problem = ""
    for batch in data.batches():
        tokenize(data, batch, tokenizer, prep)
        documents = find_documents(data, batch).cut(prep.window)
        num_documents += len(documents.keys)
        for generation in generations:
            known[generation] += int(journal.look_up(documents.keys, generation).known.sum())
        try:
            replay(data, batch, documents, journal, generations[-1])
        except UnusableError as error:
            problem = str(error)
            break
    if problem:
        return [problem]
    first = generations[0]
    check_known(max(known.values()), path, first)
    counts = ", ".join(f"{count:,} in generation {number}" for number, count in known.items())
    print(f"{path}: {num_documents:,} documents, all replayed; the journal knows {counts}")
    return []
