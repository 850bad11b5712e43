"""Edits texts, for the engines that run on many machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config.policies import parse_policy
from ..data import Batch, Data, encode, find_documents
from ..data.documents import COUNTS, edit_documents
from ..policy import EditPolicy
from ..prior.prior import Prior
from ..stores.cache import NO_LIMIT, DecisionCache
from ..stores.ragged import Array


@dataclass(frozen=True)
class EditedText:
    """One text after its edit.

    Attributes:
        text: edited; exactly the source if no token changed.
        input_ids: its tokens with the tokenizer's special and end tokens, as SFTTrainer, a recipe
            or `toedit apply` makes them.
        counts: of its tokens: scored, selected, changed and dropped.
    """

    text: str
    input_ids: list[int]
    counts: dict[str, int]


class TextEditor:
    """Edits texts with a prior, in batches of similar length.

    An edit depends on the seed and on the text alone, not on the batch or the machine.

    Args:
        prior: folder or hub id.
        policy: as in commands, "paper" or "reference_code,top_k=8"; or an `EditPolicy`.
        max_length: tokens of a window; a longer text is scored window by window, each on its own.
        batch_tokens: how many tokens are scored at once, padding included.
        cache: folder of a `DecisionCache` to fill, by any number of processes at once; or None.
        prior_options: for `Prior.from_pretrained`: dtype, device, quantization, ...

    Raises:
        ValueError: a number is too small; the policy is unknown, or its target is not "both".
    """

    def __init__(
        self,
        prior: str,
        policy: str | EditPolicy = "paper",
        *,
        max_length: int = 2048,
        batch_tokens: int = 16_384,
        cache: str | None = None,
        **prior_options: Any,
    ) -> None:
        if max_length < 2 or batch_tokens < 1:
            raise ValueError(
                f"max_length must be at least 2 and batch_tokens at least 1, got {max_length} and "
                f"{batch_tokens}"
            )
        self.policy = parse_policy(policy) if isinstance(policy, str) else policy
        if self.policy.target != "both":
            raise ValueError(
                f"target={self.policy.target!r} needs other labels than inputs, and an edited text "
                "has only one form; use target='both' here, and the target in the training run (a "
                "decision cache serves all targets)"
            )
        self.prior = Prior.from_pretrained(prior, **prior_options)
        self._max_length, self._batch_tokens = max_length, batch_tokens
        self._cache = None
        if cache is not None:
            self._cache = DecisionCache(cache, max_bytes=NO_LIMIT, fill_only=True)

    def edit(self, texts: Sequence[str], names: Sequence[str] | None = None) -> list[EditedText]:
        """Edit texts, in their order.

        A ValueError is raised if a value is not a text (null, bytes, a number), with its name of
        `names`, or if the prior can't score it.
        """
        if isinstance(texts, str | bytes):
            raise TypeError("texts must be a list of texts, got one alone; write edit([text])")
        if not len(texts):
            return []
        all_ids, added = encode(self.prior.tokenizer, texts, names=names)
        rows = [{"input_ids": ids} for ids in all_ids]
        whole = find_documents(Data("texts", "", list), Batch(rows, [""] * len(rows)))
        windows = whole.cut(self._max_length)
        edited, counts_of_windows = edit_documents(
            self.prior, self.policy, windows, windows.tokens, batch_tokens=self._batch_tokens,
            cache=self._cache,
        )  # fmt: skip
        counts = np.zeros((len(texts), len(COUNTS)), np.int64)
        np.add.at(counts, windows.row, counts_of_windows)
        borders = np.cumsum([len(ids) for ids in all_ids])[:-1]
        new, removed = np.split(edited.tokens, borders), np.split(edited.removed, borders)
        parts = zip(texts, whole.ids, added, new, removed, counts, strict=True)
        return [self._edited_text(*part) for part in parts]

    def flush(self) -> None:
        """Write what the cache has not written yet."""
        if self._cache is not None:
            self._cache.flush()

    def _edited_text(
        self, text: str, old: Array, special: Array, new: Array, removed: Array, counts: Array
    ) -> EditedText:
        """Of one text: its tokens before and after the edit, and those that it removes."""
        if (new != old).any() or removed.any():
            tokenizer: Any = self.prior.tokenizer
            left = new[~removed & ~special].tolist()
            text = tokenizer.decode(left, clean_up_tokenization_spaces=False)
        of = dict(zip(COUNTS, counts.tolist(), strict=True))
        return EditedText(text, new[~removed].tolist(), of)
