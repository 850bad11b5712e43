"""What a training run with a journal edited, per generation, in the documents themselves."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from ..data import Example
from ..stores.journal import Journal
from .findings import Document, Edit, KindTally, Tokens
from .inspecting import Inspection
from .kinds import Reader


def inspect_journal(
    journal: Journal,
    documents: Iterable[Example],
    reader: Reader,
    *,
    keep: int = 200,
    limit: int | None = None,
    data: str = "rows",
) -> Inspection:
    """Show the edits of a journal in their documents.

    A journal stores changes. It does not store which other tokens were selected, nor probabilities.

    Args:
        journal: of the run.
        documents: of the source, tokenized as in training.
        reader: turns token ids into text.
        keep: keep the N documents with the most edits, to show them.
        limit: read the first N documents; None: all.
        data: the source, in words.

    Raises:
        ValueError: the journal knows none of the documents, or its edits belong to others.
    """
    names = {number: f"generation {number}" for number in journal.generations}
    counts = journal.stats()
    seen = Inspection(
        policies=dict.fromkeys(names.values()),
        tallies={name: KindTally() for name in names.values()},
        prior=f"see the journal {journal.path}",
        data=data,
        reader=reader,
        run={name: counts[number] for number, name in names.items()},
    )
    num_known = 0

    def edited() -> Iterator[Document]:
        nonlocal num_known
        for source in islice(documents, limit):
            seen.num_documents += 1
            seen.num_tokens += len(source.ids)
            num_known += any(journal.knows(source.ids, number) for number in names)
            document = _document(source, journal, names, reader)
            labelled = np.array(source.labels) != -100
            labelled[:1] = False
            for name, edit in document.edits.items():
                seen.tallies[name].add(document.kinds, labelled, edit)
            if document.num_edits:
                yield document

    seen.documents = heapq.nlargest(keep, edited(), key=lambda document: document.num_edits)
    if not num_known:
        raise ValueError(
            f"the journal contains none of the {seen.num_documents:,} documents of {data}; pass "
            "the data of the training run (trainer.train_dataset.save_to_disk(FOLDER)) and its "
            "tokenizer"
        )
    return seen


def _document(source: Example, journal: Journal, names: dict[int, str], reader: Reader) -> Document:
    def state(generation: int) -> Tokens:
        """(T,) each token of the source after a generation; -1: removed."""
        tokens, place = journal.revise(source.ids, generation)
        full = np.full(len(source.ids), -1)
        full[place] = tokens
        return full

    unknown = np.zeros(len(source.ids), bool)
    pieces, kinds = reader.read(source.ids)
    return Document(
        name=source.name,
        ids=source.ids,
        pieces=pieces,
        kinds=kinds,
        probability=np.full(len(source.ids), np.nan, np.float32),
        edits={
            name: Edit(unknown, unknown, unknown, before=state(number - 1), after=state(number))
            for number, name in names.items()
        },
        candidates={},
    )
