"""What a run with a journal really edited, per generation, in context."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np

from ..stores.journal import Journal
from .documents import SourceDocument
from .inspection import Document, Edit, Inspection
from .kinds import Reader
from .tally import KindTally, Probabilities


def inspect_journal(
    journal: Journal,
    documents: Iterable[SourceDocument],
    reader: Reader,
    *,
    generations: list[int] | None = None,
    keep: int = 200,
    limit: int | None = None,
    data: str = "rows",
) -> Inspection:
    """Show the edits that a journal holds, in the documents that they were made in.

    Selected tokens that came out the same, and probabilities, are not in a journal.

    Args:
        journal: of the run.
        documents: of the source, tokenized as in training.
        reader: makes text of token ids.
        generations: which; None: all.
        keep: show so many documents, those with the most edits.
        limit: look at so many; None: at all.
        data: the source, in words.

    Raises:
        ValueError: the journal has no such generation, knows none of the documents, or its edits
            belong to others.
    """
    chosen = journal.generations if generations is None else generations
    names = {number: f"generation {number}" for number in chosen}
    tallies = {name: KindTally() for name in names.values()}
    kept: list[Document] = []
    num_documents = num_tokens = num_known = 0
    for source in islice(documents, limit):
        num_documents += 1
        num_tokens += len(source.ids)
        known = [number for number in chosen if journal.knows(source.ids, number)]
        num_known += bool(known)
        document = _document(source, journal, names, reader)
        labelled = np.array(source.labels) != -100
        labelled[:1] = False
        for name, edit in document.edits.items():
            changed, removed = np.zeros_like(labelled), np.zeros_like(labelled)
            changed[edit.changed] = True
            removed[edit.removed] = True
            tallies[name].add(
                document.text.kinds, labelled, edit.selected, changed, removed, edit.spared
            )
        if document.num_edits:
            kept.append(document)
            if len(kept) > 4 * keep:
                kept = _most_edited(kept, keep)
    if not num_known:
        raise ValueError(
            f"of {data}, the journal knows none of the documents ({num_documents:,}); give what "
            "was trained on, trainer.train_dataset.save_to_disk(FOLDER), or its tokenizer"
        )
    return Inspection(
        policies=dict.fromkeys(names.values()),
        documents=_most_edited(kept, keep),
        tallies=tallies,
        probabilities=Probabilities(),
        num_documents=num_documents,
        num_tokens=num_tokens,
        prior=f"as in the journal {journal.path}",
        data=data,
        reader=reader,
    )


def _most_edited(documents: list[Document], keep: int) -> list[Document]:
    return sorted(documents, key=lambda document: -document.num_edits)[:keep]


def _document(
    source: SourceDocument, journal: Journal, names: dict[int, str], reader: Reader
) -> Document:
    states: dict[int, Any] = {}

    def state(generation: int) -> Any:
        """(T,) int64, the tokens after a generation where they stood in the source; -1: gone."""
        if generation not in states:
            tokens, place = journal.revise(source.ids, generation)
            full = np.full(len(source.ids), -1)
            full[place] = tokens
            states[generation] = full
        return states[generation]

    edits = {}
    nothing = np.zeros(len(source.ids), bool)
    for number, name in names.items():
        before, after = state(number - 1), state(number)
        edits[name] = Edit(
            scored=nothing,
            selected=(before != after) & (after >= 0),
            spared=nothing,
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
