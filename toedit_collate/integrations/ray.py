"""For Ray Data: `dataset.map_batches(ToEditBatches, ...)`, one actor a GPU.

```python
dataset.map_batches(
    ToEditBatches,
    fn_constructor_args=("Qwen/Qwen2.5-0.5B",),
    fn_constructor_kwargs={"policy": "paper", "max_length": 1024},
    compute=ray.data.ActorPoolStrategy(size=8),
    num_gpus=1,
)
```

Ray makes an actor that was killed anew. A run whose driver was killed goes on where it was if Ray
Data keeps marks of what was written, by its `CheckpointConfig`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data import check_text
from ..policy import EditPolicy
from .texts import TextEditor


class ToEditBatches:
    """Edits a column of texts; made once in each actor, so that a prior is loaded once.

    Adds the columns `scored`, `selected`, `changed` and `dropped`: counts of tokens, (N,) int64.

    Args:
        prior: folder or hub id.
        policy: as commands take it, "paper" or "reference_code top_k=8"; or an `EditPolicy`.
        column: that holds the texts.
        options: of `TextEditor`: max_length, batch_tokens, and of `Prior.from_pretrained`.

    Raises:
        ValueError: `cache` is among the options.
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
            # What an actor has decided and not written is lost with it, while Ray knows its rows
            # as done: such a cache would lack documents.
            raise ValueError(
                "cache: Ray tells no actor which batch is its last, so a decision cache can't be "
                "filled from here; fill it by toedit_collate.integrations.datatrove or `toedit "
                "apply --cache`"
            )
        self._editor = TextEditor(prior, policy, **options)
        self._column = column

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Edit one batch of Ray Data: a dict of arrays.

        Raises:
            ValueError: it has no such column, or a value in it is no text (null, bytes, a number).
        """
        if self._column not in batch:
            raise ValueError(
                f"column {self._column!r} is not among {sorted(batch)}; pass column=NAME"
            )
        texts = list(batch[self._column])
        for number, text in enumerate(texts):
            check_text(text, f"{self._column} of row {number} (from 0) of a batch")
        edited = self._editor.edit(texts)
        counts = {
            name: np.array([one.counts[name] for one in edited], np.int64)
            for name in ("scored", "selected", "changed", "dropped")
        }
        new = np.array([one.text for one in edited], dtype=object)
        return {**batch, self._column: new, **counts}
