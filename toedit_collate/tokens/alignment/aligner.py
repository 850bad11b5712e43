"""The documents of a batch, tokenized for the prior: in a DataLoader worker, or where they are."""

from __future__ import annotations

from collections.abc import Mapping

from ..documents import Documents
from ..token_batch import TokenBatch
from .byte_tokenizer import IntArray
from .document import AlignedDocument, Aligner


class DocumentAligner:
    """Aligns the documents of batches. It can be sent to other processes.

    Args:
        one: aligns one document.
    """

    def __init__(self, one: Aligner) -> None:
        self.one = one

    def __call__(
        self,
        tokens: IntArray,
        documents: Documents,
        known: Mapping[bytes, AlignedDocument] | None = None,
    ) -> list[AlignedDocument]:
        """Align all documents of a batch.

        Args:
            tokens: (M,) int64, the trainee's.
            documents: of the batch.
            known: documents that were aligned before, by `content`.
        """
        found = []
        for start, length in zip(documents.start.tolist(), documents.lengths, strict=True):
            own = tokens[start : start + length]
            there = None if known is None else known.get(content(own))
            found.append(self.one.align(own) if there is None else there)
        return found

    def prepare(self, batch: TokenBatch) -> dict[bytes, AlignedDocument]:
        """The documents of a batch by their content, for `AlignedPrior.take_prepared`."""
        tokens, documents = batch.tokens.numpy(), batch.documents
        starts = zip(documents.start.tolist(), documents.lengths, strict=True)
        contents = (content(tokens[start : start + length]) for start, length in starts)
        return dict(zip(contents, self(tokens, documents), strict=True))


def content(tokens: IntArray) -> bytes:
    """What tells documents apart: their tokens."""
    return tokens.tobytes()
