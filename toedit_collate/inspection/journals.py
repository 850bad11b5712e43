"""What a training run with a journal edited, per generation, in the documents themselves."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np

from ..data import Example
from ..stores.journal import Journal
from .findings import Document, Edit, KindTally, Probabilities
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
    tallies = {name: KindTally() for name in names.values()}
    kept: list[Document] = []
    num_documents = num_tokens = num_known = 0
    for source in islice(documents, limit):
        num_documents += 1
        num_tokens += len(source.ids)
        num_known += any(journal.knows(source.ids, number) for number in names)
        document = _document(source, journal, names, reader)
        labelled = np.array(source.labels) != -100
        labelled[:1] = False
        for name, edit in document.edits.items():
            tallies[name].add(document.text.kinds, labelled, edit)
        if document.num_edits:
            kept.append(document)
            if len(kept) > 4 * keep:
                kept = _most_edited(kept, keep)
    if not num_known:
        raise ValueError(
            f"the journal contains none of the {num_documents:,} documents of {data}; pass the "
            "data of the training run (trainer.train_dataset.save_to_disk(FOLDER)) and its "
            "tokenizer"
        )
    counts = journal.stats()
    return Inspection(
        policies=dict.fromkeys(names.values()),
        documents=_most_edited(kept, keep),
        tallies=tallies,
        probabilities=Probabilities(),
        num_documents=num_documents,
        num_tokens=num_tokens,
        prior=f"see the journal {journal.path}",
        data=data,
        reader=reader,
        run={name: counts[number] for number, name in names.items()},
    )


def _most_edited(documents: list[Document], keep: int) -> list[Document]:
    return sorted(documents, key=lambda document: -document.num_edits)[:keep]


def _document(source: Example, journal: Journal, names: dict[int, str], reader: Reader) -> Document:
    states: dict[int, Any] = {}

    def state(generation: int) -> Any:
        """(T,) int64, each token of the source after a generation; -1: removed."""
        if generation not in states:
            tokens, place = journal.revise(source.ids, generation)
            full = np.full(len(source.ids), -1)
            full[place] = tokens
            states[generation] = full
        return states[generation]

    edits = {}
    unknown = np.zeros(len(source.ids), bool)
    for number, name in names.items():
        before, after = state(number - 1), state(number)
        edits[name] = Edit(
            scored=unknown,
            selected=unknown,
            protected=unknown,
            before=before.tolist(),
            after=[None if token < 0 else token for token in after.tolist()],
        )
    return Document(
        name=source.name,
        ids=source.ids,
        text=reader.read(source.ids),
        probability=np.full(len(source.ids), np.nan, np.float32),
        edits=edits,
        candidates={},
    )
