"""A step for datatrove: reader -> ToEdit -> writer, on one machine or on Slurm.

datatrove starts a killed task again from its beginning, and the task overwrites its file. With the
same prior and policy, an edit depends only on the text, so the number of tasks does not change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from ..policy import EditPolicy
from .texts import TextEditor

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError:  # in tests and docs
    PipelineStep = object


class ToEdit(PipelineStep):  # type: ignore[misc, valid-type]
    """Edits the text of each document; `metadata["toedit"]` gets its counts of tokens.

    With `with_ids`, `metadata["input_ids"]` gets the edited tokens; tokenizing the text again may
    give others. `batch_documents` are read at once, and sorted by length. Other arguments are those
    of `TextEditor`.
    """

    name = "ToEdit"
    type = "EDIT"

    def __init__(
        self,
        prior: str,
        policy: str | EditPolicy = "paper",
        *,
        with_ids: bool = False,
        batch_documents: int = 256,
        **options: Any,
    ) -> None:
        super().__init__()
        if batch_documents < 1:
            raise ValueError(f"batch_documents must be at least 1, got {batch_documents}")
        self.prior, self.policy, self.options = prior, policy, options
        self.with_ids, self.batch_documents = with_ids, batch_documents

    def run(self, data: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Yield the edited documents of one task; a ValueError if a document holds no text."""
        # Not in the constructor: the step itself is sent to other processes and machines.
        editor = TextEditor(self.prior, self.policy, **self.options)
        documents = iter(data)
        while batch := list(islice(documents, self.batch_documents)):
            names = [f"text of document {document.id!r}" for document in batch]
            with self.track_time("batch"):
                edited = editor.edit([document.text for document in batch], names)
            for document, one in zip(batch, edited, strict=True):
                document.text = one.text
                document.metadata["toedit"] = one.counts
                if self.with_ids:
                    document.metadata["input_ids"] = one.input_ids
                for name, count in one.counts.items():
                    self.stat_update(name, value=count)
                yield document
        editor.flush()
