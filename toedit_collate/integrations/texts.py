"""Edits texts, for the engines that run on many machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ..config.policies import parse_policy
from ..data import by_length, encode
from ..editing.edit import edit_tokens
from ..policy import EditPolicy
from ..prior.prior import Prior
from ..stores.cache import DecisionCache
from ..stores.ragged import Array

COUNTS = ("scored", "selected", "changed", "dropped")
_NO_LIMIT = 2**62  # of a cache: training without the prior needs all documents


@dataclass(frozen=True)
class EditedText:
    """One text after its edit, with its counts of tokens.

    Attributes:
        text: edited; exactly the source if no token changed.
        input_ids: its tokens with the tokenizer's special and end tokens, as SFTTrainer, a recipe
            or `toedit apply` makes them.
        is_lossy: the tokenizer does not restore the source from its tokens, so more than the
            changed tokens may differ in `text`.
    """

    text: str
    input_ids: list[int]
    scored: int
    selected: int
    changed: int
    dropped: int
    is_lossy: bool

    @property
    def counts(self) -> dict[str, int]:
        """The counts alone."""
        return {name: getattr(self, name) for name in COUNTS}


class TextEditor:
    """Edits texts with a prior, in batches of similar length.

    An edit depends on the seed and on the text alone, not on the batch or the machine.

    Args:
        prior: folder or hub id.
        policy: as in commands, "paper" or "reference_code top_k=8"; or an `EditPolicy`.
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
            self._cache = DecisionCache(cache, max_bytes=_NO_LIMIT, fill_only=True)

    def edit(self, texts: Sequence[str], names: Sequence[str] | None = None) -> list[EditedText]:
        """Edit texts, in their order.

        Args:
            texts: of any number.
            names: of the texts, for errors; None: their places.

        Raises:
            TypeError: `texts` is one text.
            ValueError: a value is not a text (null, bytes, a number), or the prior can't score it.
        """
        if isinstance(texts, str | bytes):
            raise TypeError("texts must be a list of texts, got one alone; write edit([text])")
        if not len(texts):
            return []
        all_ids, added = encode(self.prior.tokenizer, texts, names=names)
        windows = [
            (number, start, ids[start : start + self._max_length])
            for number, ids in enumerate(all_ids)
            for start in range(0, len(ids), self._max_length)
        ]
        edited: list[Any] = [None] * len(windows)
        for some in by_length([len(ids) for _, _, ids in windows], self._batch_tokens):
            for i, one in zip(some, self._edit_batch([windows[i][2] for i in some]), strict=True):
                edited[i] = one
        parts: list[list[tuple[int, Any]]] = [[] for _ in texts]
        for (number, start, _), one in zip(windows, edited, strict=True):
            parts[number].append((start, one))
        return [self._join(*one) for one in zip(texts, all_ids, added, parts, strict=True)]

    def flush(self) -> None:
        """Write what the cache has not written yet."""
        if self._cache is not None:
            self._cache.flush()

    def _edit_batch(self, pieces: list[list[int]]) -> list[tuple[list[int], list[int], Array]]:
        """For each window: its tokens, their places in it, and its four counts."""
        rows = [torch.tensor(ids) for ids in pieces]
        input_ids = pad_sequence(rows, batch_first=True)
        source = pad_sequence([torch.arange(len(row)) for row in rows], True, padding_value=-1)
        result = edit_tokens(
            self.prior, input_ids, attention_mask=(source >= 0).long(), policy=self.policy,
            cache=self._cache,
        )  # fmt: skip
        counts = torch.stack([getattr(result, name).sum(-1) for name in COUNTS], -1).cpu().numpy()
        source = source if result.source is None else result.source.cpu()
        return [
            (ids[place >= 0].tolist(), place[place >= 0].tolist(), count)
            for ids, place, count in zip(result.input_ids.cpu(), source, counts, strict=True)
        ]

    def _join(
        self, text: str, ids: list[int], special: Array, parts: list[tuple[int, Any]]
    ) -> EditedText:
        tokenizer: Any = self.prior.tokenizer
        new = [token for _, (tokens, _, _) in parts for token in tokens]
        at = [start + place for start, (_, places, _) in parts for place in places]
        totals = [sum(int(count[n]) for _, (_, _, count) in parts) for n in range(len(COUNTS))]
        before = [token for token, mark in zip(ids, special, strict=True) if not mark]
        is_lossy = tokenizer.decode(before, clean_up_tokenization_spaces=False) != text
        if totals[2] or totals[3]:
            plain = [token for token, place in zip(new, at, strict=True) if not special[place]]
            text = tokenizer.decode(plain, clean_up_tokenization_spaces=False)
        counts = dict(zip(COUNTS, totals, strict=True))
        return EditedText(text, new, **counts, is_lossy=is_lossy)
