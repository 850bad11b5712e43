"""For Ray Data: `dataset.map_batches(ToEditBatches, ...)`, one actor for each GPU.

Ray restarts an actor that was killed. If the driver was killed, the run continues with Ray Data's
`CheckpointConfig`. docs/clusters.md has an example.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.documents import COUNTS
from ..policy import EditPolicy
from .texts import TextEditor


class ToEditBatches:
    """Edits a column of texts. Each actor makes one, so it loads the prior once.

    Adds the columns `scored`, `selected`, `changed` and `dropped`: counts of tokens, (N,) int64.

    The `column` holds the texts. Other arguments are those of `TextEditor`, without `cache`.
    """

    def __init__(
        self,
        prior: str,
        policy: str | EditPolicy = "paper",
        *,
        column: str = "text",
        **options: Any,
    ) -> None:
        if "cache" in options:
            # An actor does not know its last batch, so it would lose unwritten decisions.
            raise ValueError(
                "cache: a decision cache can't be filled in Ray, which does not tell an actor its "
                "last batch; use toedit_collate.integrations.datatrove or `toedit apply "
                "--cache`"
            )
        self._editor = TextEditor(prior, policy, **options)
        self._column = column

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Edit one batch of Ray Data, a dict of arrays; a ValueError if a value is not a text."""
        if self._column not in batch:
            raise ValueError(
                f"column {self._column!r} is not among {sorted(batch)}; pass column=NAME"
            )
        texts = list(batch[self._column])
        names = [f"{self._column} of row {n} (from 0) of a batch" for n in range(len(texts))]
        edited = self._editor.edit(texts, names)
        counts = {n: np.array([one.counts[n] for one in edited], np.int64) for n in COUNTS}
        new = np.array([one.text for one in edited], dtype=object)
        return {**batch, self._column: new, **counts}
