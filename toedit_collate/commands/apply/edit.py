"""The edit of windows of the data, and counts of what was done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...data import Batch
from ...editing.edit import edit_tokens
from ...errors import UnusableError
from ...policy import EditPolicy
from ...prior.prior import Prior
from ...stores.cache import DecisionCache
from ...stores.ragged import Array
from ...tokens.result import EditResult
from .windows import Window

# What is decided is written at least so often, so that a run that is killed loses little.
SECONDS_BETWEEN_WRITES = 60.0


@dataclass
class Counts:
    """What was done so far.

    `editable` documents have a token that the policy is applied to; of them, those `decided` were
    not in the cache before, and took so many `decided_bytes` in it.
    """

    rows: int = 0
    rows_from_text: int = 0
    documents: int = 0
    tokens: int = 0
    scored: int = 0
    selected: int = 0
    changed: int = 0
    dropped: int = 0
    editable: int = 0
    decided: int = 0
    decided_bytes: int = 0
    decided_tokens: int = 0


@dataclass(frozen=True)
class EditedRows:
    """A batch of rows as it was read, and what became of its m tokens, document by document.

    Attributes:
        rows: as they were read.
        tokens: (m,) int64, after the edit of epoch 0.
        removed: (m,) bool, tokens that it drops.
    """

    rows: Batch
    tokens: Array
    removed: Array


class Editor:
    """Edits windows, and fills the cache on the way.

    Args:
        prior: scores what the cache lacks.
        policy: of the edit.
        cache: or None.
        batch_tokens: how many tokens are scored at once.
    """

    def __init__(
        self, prior: Prior, policy: EditPolicy, cache: DecisionCache | None, batch_tokens: int
    ) -> None:
        self.counts = Counts()
        self._prior = prior
        self._policy = policy
        self._cache = cache
        self._batch_tokens = batch_tokens
        self._written_at = time.monotonic()

    def edit(self, window: Window, on_batch: Callable[[int], object]) -> list[EditedRows]:
        """Edit a window; returns its batches of rows, in order.

        Args:
            window: of the data.
            on_batch: called after each batch that was scored, with the number of its tokens.

        Raises:
            UnusableError: the prior can't score it, or the cache can't be written.
        """
        tokens, removed = window.tokens.copy(), np.zeros(len(window.tokens), bool)
        for input_ids, real, labels, members in window.padded(self._batch_tokens):
            result = self._edit_batch(input_ids, real, labels)
            edited = result.input_ids
            if result.source is not None:  # tokens were dropped: back to where the others were
                rows, columns = (result.source >= 0).nonzero().unbind(-1)
                edited = input_ids.clone()
                edited[rows, result.source[rows, columns]] = result.input_ids[rows, columns]
            tokens[members] = edited[real].numpy()
            removed[members] = result.dropped[real].numpy()
            on_batch(len(members))
        self.counts.rows += sum(len(batch.rows) for batch in window.batches)
        self.counts.rows_from_text += window.num_from_text
        if time.monotonic() - self._written_at > SECONDS_BETWEEN_WRITES:
            self.write()
        ends = np.cumsum(window.sizes)
        parts = (slice(end - size, end) for end, size in zip(ends, window.sizes, strict=True))
        return [
            EditedRows(batch, tokens[part], removed[part])
            for batch, part in zip(window.batches, parts, strict=True)
        ]

    def write(self) -> None:
        """Write what is in the cache and not on the disk yet.

        Raises:
            UnusableError: it can't be written.
        """
        self._written_at = time.monotonic()
        if self._cache is None:
            return
        try:
            self._cache.flush()
        except OSError as error:
            raise UnusableError(
                f"--cache {self._cache.path}: can't be written ({error}); make room, and start "
                "again: what was written before is kept"
            ) from None

    def _edit_batch(self, input_ids: Tensor, real: Tensor, labels: Tensor) -> EditResult:
        held = self._held()
        try:
            result = edit_tokens(
                self._prior, input_ids, attention_mask=real.long(), labels=labels,
                policy=self._policy, cache=self._cache,
            )  # fmt: skip
        except ValueError as error:  # the prior gave NaN, or a file of the cache is damaged
            raise UnusableError(str(error)) from None
        counts, num_tokens = self.counts, int(real.sum())
        counts.documents += len(input_ids)
        counts.tokens += num_tokens
        for name in ("scored", "selected", "changed", "dropped"):
            setattr(counts, name, getattr(counts, name) + int(getattr(result, name).sum()))
        counts.editable += int(result.scored.any(-1).sum())
        now = self._held()
        counts.decided += now[0] - held[0]
        counts.decided_bytes += now[1] - held[1]
        # All of a batch, or none: on a run that goes on, nearly so.
        counts.decided_tokens += num_tokens if now[0] > held[0] else 0
        return result

    def _held(self) -> tuple[int, int]:
        """Documents and bytes in the cache."""
        if self._cache is None:
            return 0, 0
        return self._cache.num_documents, self._cache.nbytes
