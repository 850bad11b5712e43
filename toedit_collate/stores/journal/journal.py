"""Journal: what was changed in each generation, so that it can be replayed."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..ragged import Array
from .counts import counts_of
from .keys import keys_of
from .recorder import EditRecorder
from .replay import Texts, replay_generation

# Journals of this process, by folder.
JOURNALS: weakref.WeakValueDictionary[str, Journal] = weakref.WeakValueDictionary()


class Journal(EditRecorder):
    """A record of every token that was changed, by generation, in a folder.

    Give it to a `ToEditCollator`, and each document has one edit per generation (Eq. 3 of
    arXiv:2412.14689): before generation n edits a document, it is brought to its state after
    generation n-1; later epochs of generation n replay the edit, without a forward pass.

    Generations count from 1, the one that an unswapped prior edits; 0 is the source. Documents are
    known by the content of their source, so a journal does not depend on the order of the data, on
    batches or on ranks. Each rank writes files of its own, and reads all. Reading takes no lock and
    writes nothing: a journal may be read while a run writes it, and from a read-only folder.

    In one process, journals of one folder are one object: also those that were pickled or copied.

    Args:
        path: of the folder; made when the first edit is written.

    Raises:
        NotADirectoryError: `path` is a file.

    Example:
        >>> import tempfile, torch
        >>> from toedit_collate import EditPolicy, Prior, ToEditCollator
        >>> from transformers import LlamaConfig, LlamaForCausalLM, default_data_collator
        >>> config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8,
        ...     num_hidden_layers=1, num_attention_heads=1, pad_token_id=0)
        >>> prior = Prior(LlamaForCausalLM(config))
        >>> source, folder = [5, 6, 7, 8], tempfile.TemporaryDirectory()
        >>> with Journal(folder.name) as journal:
        ...     policy = EditPolicy(threshold=1e-9, exclude_original=True)
        ...     collator = ToEditCollator(
        ...         prior, policy, base_collator=default_data_collator, journal=journal
        ...     )
        ...     edited = collator([{"input_ids": source}])["input_ids"][0].tolist()
        ...     journal.replay(source, generation=1) == edited != source
        True
        >>> folder.cleanup()
    """

    def __new__(cls, path: str | os.PathLike[str]) -> Journal:
        """The journal of that folder, if this process has one."""
        journal = JOURNALS.get(os.path.realpath(path))
        return super().__new__(cls) if journal is None else journal

    def __init__(self, path: str | os.PathLike[str]) -> None:
        folder = Path(path)
        if JOURNALS.get(os.path.realpath(path)) is self:
            return
        if os.path.lexists(folder) and not folder.is_dir():
            raise NotADirectoryError(f"path of a journal must be a folder, got the file {path}")
        super().__init__(folder.absolute())
        JOURNALS[os.path.realpath(path)] = self

    def __repr__(self) -> str:
        return f"Journal({str(self.path)!r}, generations={self.generations})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Journal, (self.path,)

    def replay(self, ids: Sequence[int], generation: int) -> list[int]:
        """A document as a generation trained on it.

        Warns where no generation up to this one knows the document: then it was not trained on, or
        not with these ids (another template, truncation or special tokens), or nothing in it could
        be edited.

        Args:
            ids: token ids of the source document, as it was collated.
            generation: its number; 0 gives the source back.

        Raises:
            ValueError: there is no such generation, or the edits belong to another document.

        Returns:
            The edited ids; as they came where no generation edited the document.
        """
        revised, _, known = self._revise(ids, generation)
        if generation > 0 and len(ids) > 1 and not known:
            warnings.warn(
                f"the journal {self.path} knows no document of these {len(ids)} tokens, so it is "
                "given back as it came: it was not trained on, or nothing in it could be edited, "
                "or its ids are others than those that were collated (template, truncation, "
                "special tokens); Journal.knows tells",
                stacklevel=2,
            )
        return revised.tolist()

    def revise(self, ids: Sequence[int], generation: int) -> tuple[Array, Array]:
        """As `replay`, with the place in `ids` of each token that is left: two (m,) int64."""
        return self._revise(ids, generation)[:2]

    def _revise(self, ids: Sequence[int], generation: int) -> tuple[Array, Array, bool]:
        """As `revise`, and whether any generation knows the document."""
        self._check_generation(generation)
        tokens = _as_tokens(ids)
        keys = _key_of(tokens)
        texts = Texts.of(tokens, np.zeros(len(keys), np.int64))
        self.bring_forward(texts, keys, generation)
        known = (self.look_up(keys, n).known.any() for n in range(1, generation + 1))
        left = ~texts.removed
        return texts.tokens[left], np.flatnonzero(left), any(known)

    def knows(self, ids: Sequence[int], generation: int) -> bool:
        """Whether a generation edited a document, changed or not."""
        self._check_generation(generation)
        keys = _key_of(_as_tokens(ids))
        return generation > 0 and bool(self.look_up(keys, generation).known.any())

    def stats(self) -> dict[int, dict[str, float]]:
        """What each generation did.

        Each document counts once, but for one that stands in the data several times, if several
        ranks edited it in the same epoch: it counts for each of them.

        For each generation: `documents`, `tokens` of them, `scored`, `selected`, `changed` and
        `dropped` tokens, `selected_share` and `changed_share` of the scored ones (Table 9).
        """
        self.flush()
        return counts_of(self.path)

    def bring_forward(self, texts: Texts, keys: Array, generation: int, *, since: int = 0) -> None:
        """Bring n documents from their state after `since` (0: the source) to that after another.

        Args:
            texts: the documents, changed in place.
            keys: (n,) uint64, of the source documents.
            generation: whose edit is the last.
            since: the generation whose edit they have.

        Raises:
            ValueError: the edits belong to other documents.
        """
        for number in range(since + 1, generation + 1):
            try:
                replay_generation(texts, self.look_up(keys, number))
            except ValueError as error:
                raise ValueError(f"journal {self.path}, generation {number}: {error}") from error

    def _check_generation(self, generation: int) -> None:
        if isinstance(generation, bool) or not isinstance(generation, int):
            raise TypeError(f"generation must be a whole number, got {generation!r}")
        if generation < 0 or (generation > 0 and generation not in self.generations):
            held = self.generations
            raise ValueError(
                f"generation must be 0 (the source) or one of the journal's, {held or 'none yet'}; "
                f"got {generation} ({self.path})"
            )


def _as_tokens(ids: Sequence[int]) -> Array:
    """(n,) int64; raise unless these are the token ids of one document."""
    tokens = np.asarray(ids)
    if tokens.ndim == 1 and not tokens.size:
        return tokens.astype(np.int64)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(
            f"ids must be the token ids of one document, got an array of shape {tokens.shape} "
            f"and type {tokens.dtype}; give whole numbers in a list"
        )
    return tokens.astype(np.int64)


def _key_of(tokens: Array) -> Array:
    return keys_of(tokens, [len(tokens)] if len(tokens) else [])
