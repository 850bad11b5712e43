"""The documents of a data file one by one: token ids and labels, cut in windows where asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .documents import Documents, find_documents, labels_of
from .rows import Batch, Data, Row
from .tokens import tokenize


@dataclass(frozen=True)
class Example:
    """One document, or one window of a long one.

    Attributes:
        name: of its row, for messages: "line 3".
        ids: (T,), its tokens.
        labels: (T,), the same, or -100 where a token has no label.
        start: of the window in its document, in tokens.
        row: as it was read.
    """

    name: str
    ids: list[int]
    labels: list[int]
    start: int
    row: Row


def examples(
    data: Data, tokenizer: Any, *, max_length: int | None = None, vocab_size: int | None = None,
    assistant_only: bool = False, eos: bool = True,
) -> Iterator[Example]:  # fmt: skip
    """Read all documents of a data file as training would see them; memory stays bounded.

    Args:
        data: see `open_data`. Packed rows give each of their documents.
        tokenizer: for text and chats; None: rows must have `input_ids`.
        max_length: cut longer documents into windows of so many tokens, each to be scored on its
            own; None: leave them whole.
        vocab_size: of the prior; None: ids are not checked.
        assistant_only: only the assistant's turns have labels; see `tokenize`.
        eos: end text by an end token; see `tokenize`.

    Raises:
        UnusableError: a row can't be used; names it, and the mend.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.jsonl"
        >>> _ = file.write_text('{"input_ids": [5, 6, 7, 8, 9]}')
        >>> from toedit_collate.data import open_data
        >>> [example.ids for example in examples(open_data(file), None, max_length=3)]
        [[5, 6, 7], [8, 9]]
    """
    for batch in data.batches():
        own = Batch([dict(row) for row in batch.rows], batch.names)
        tokenize(data, own, tokenizer, assistant_only=assistant_only, eos=eos)
        documents = find_documents(data, own)
        if vocab_size is not None:
            check_ids(data, own, documents, vocab_size)
        labels = labels_of(data, own, documents)
        start = documents.start
        windows = documents if max_length is None else documents.cut(max_length)
        ends = np.cumsum(windows.lengths)
        of = np.searchsorted(start, windows.start, side="right") - 1
        for number, end in enumerate(ends):
            begin = windows.start[number]
            yield Example(
                name=batch.names[windows.row[number]],
                ids=windows.tokens[begin:end].tolist(),
                labels=labels[begin:end].tolist(),
                start=int(begin - start[of[number]]),
                row=batch.rows[windows.row[number]],
            )


def check_ids(data: Data, batch: Batch, documents: Documents, vocab_size: int) -> None:
    """See that all tokens are in a prior's vocabulary.

    Raises:
        UnusableError: one is not; names its row.
    """
    outside = documents.tokens >= vocab_size
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        raise data.error(
            f"{batch.names[documents.row_of_token[at]]} has the token {documents.tokens[at]}, "
            f"which is not in the prior's vocabulary, [0, {vocab_size}); the data must be "
            "tokenized by the prior's tokenizer"
        )
