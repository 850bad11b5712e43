"""The samples of a run as the page of `toedit inspect`: `samples.html`, beside `samples.md`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toedit_collate.inspection.findings import Document, Edit, KindTally, Probabilities
from toedit_collate.inspection.inspection import Inspection
from toedit_collate.inspection.kinds import Reader
from toedit_collate.inspection.marking import Passage

Candidates = dict[int, list[tuple[int, float]]]
_NAME = "as trained on"


def as_page(passages: Sequence[tuple[str, Passage, Candidates]], tokenizer: Any) -> str:
    """A page of HTML that needs no network.

    Args:
        passages: names, texts, and what the prior would rather have where they were edited; the
            first first.
        tokenizer: of the trainee.
    """
    reader, tally = Reader(tokenizer), KindTally()
    documents = [_document(*one, reader, tally) for one in passages]
    seen = Inspection(
        policies={_NAME: None},
        documents=documents,
        tallies={_NAME: tally},
        probabilities=Probabilities(),
        num_documents=len(documents),
        num_tokens=sum(len(document.ids) for document in documents),
        prior="that of the run",
        data="samples of the training batches",
        reader=reader,
        run={},
    )
    return seen.to_html()


def _document(
    name: str, passage: Passage, candidates: Candidates, reader: Reader, tally: KindTally
) -> Document:
    size = len(passage.before)
    selected = np.array(passage.selected, bool)
    every, none = np.ones(size, bool), np.zeros(size, bool)
    edit = Edit(every, selected, none, passage.before, passage.after)
    chances = passage.probability
    document = Document(
        name=name,
        ids=passage.before,
        text=reader.read(passage.before),
        probability=np.full(size, np.nan, np.float32)
        if chances is None
        else np.array(chances, np.float32),
        edits={_NAME: edit},
        candidates=candidates,
    )
    tally.add(document.text.kinds, every, edit)
    return document
