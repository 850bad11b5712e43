"""Texts in, edited texts out: what the engines for many machines have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..config.policies import parse_policy
from ..data import check_text, encode
from ..editing.edit import edit_tokens
from ..policy import EditPolicy
from ..prior.prior import Prior
from ..stores.cache import DecisionCache
from ..stores.ragged import Array

# The folder is as large as it must be: a training run without the prior needs all documents.
_NO_LIMIT = 2**62


@dataclass(frozen=True)
class EditedText:
    """One text after its edit.

    Attributes:
        text: edited; where no token changed, exactly as it came.
        input_ids: its tokens, with those that the tokenizer put around it, and its end token: the
            document that SFTTrainer, a recipe or `toedit apply` makes of the same text.
        scored: tokens that the policy was applied to.
        selected: of them, those in its region.
        changed: of them, those that became another.
        dropped: tokens that were removed.
        is_lossy: the tokenizer does not give this text back from its tokens, so that more than the
            changed tokens may read otherwise.
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
        return {n: getattr(self, n) for n in ("scored", "selected", "changed", "dropped")}


class TextEditor:
    """Edits texts by a prior, in batches of similar length.

    An edit depends on the seed and on the text alone: not on the batch, nor on the machine.

    Args:
        prior: folder or hub id.
        policy: as commands take it, "paper" or "reference_code top_k=8"; or an `EditPolicy`.
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
        if self.policy.target != "both":  # now, not in each of a thousand tasks
            raise ValueError(
                f"target={self.policy.target!r} can't go into one edited text, of which inputs "
                "and labels come alike; leave it to the training run, and use target='both' here: "
                "a decision cache serves all targets"
            )
        self.prior = Prior.from_pretrained(prior, **prior_options)
        self._max_length, self._batch_tokens = max_length, batch_tokens
        self._cache = (
            None if cache is None else DecisionCache(cache, max_bytes=_NO_LIMIT, fill_only=True)
        )

    def edit(self, texts: Sequence[str]) -> list[EditedText]:
        """Edit texts; the answers come in their order.

        Raises:
            ValueError: a value is no text (null, bytes, a number), or the prior can't score it;
                names it by its place among `texts`.
        """
        for number, text in enumerate(texts):
            check_text(text, f"text {number} (from 0)")
        if not len(texts):
            return []
        all_ids, added = encode(self.prior.tokenizer, list(texts))
        pieces = {
            (number, start): ids[start : start + self._max_length]
            for number, ids in enumerate(all_ids)
            for start in range(0, len(ids), self._max_length)
        }
        edited: list[list[tuple[int, Any]]] = [[] for _ in texts]
        order = sorted(pieces, key=lambda w: -len(pieces[w]))  # what does not fit fails at once
        done = 0
        while done < len(order):
            num = max(1, self._batch_tokens // len(pieces[order[done]]))
            some = order[done : done + num]
            for (number, start), one in self._edit_batch({w: pieces[w] for w in some}).items():
                edited[number].append((start, one))
            done += num
        return [
            self._join(text, ids, special, sorted(windows, key=lambda w: w[0]))
            for text, ids, special, windows in zip(texts, all_ids, added, edited, strict=True)
        ]

    def flush(self) -> None:
        """Write what the cache has not written yet."""
        if self._cache is not None:
            self._cache.flush()

    def _edit_batch(self, pieces: dict[Any, list[int]]) -> dict[Any, Any]:
        """For each window: its tokens, where each was in it, and its four counts."""
        T = max(map(len, pieces.values()))
        input_ids = torch.zeros(len(pieces), T, dtype=torch.int64)
        mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(pieces.values()):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        result = edit_tokens(
            self.prior, input_ids, attention_mask=mask, policy=self.policy, cache=self._cache
        )
        counts = torch.stack(
            [
                one.sum(-1)
                for one in (result.scored, result.selected, result.changed, result.dropped)
            ]
        ).T
        source = torch.where(mask.bool(), torch.arange(T), -1)
        source = source if result.source is None else result.source.cpu()
        found = {}
        for row, window in enumerate(pieces):
            kept = source[row] >= 0
            ids = result.input_ids[row].cpu()[kept].tolist()
            found[window] = (ids, source[row][kept].tolist(), counts[row].cpu())
        return found

    def _join(
        self, text: str, ids: list[int], special: Array, windows: list[tuple[int, Any]]
    ) -> EditedText:
        tokenizer: Any = self.prior.tokenizer
        new: list[int] = []
        plain: list[int] = []
        total = torch.zeros(4, dtype=torch.int64)
        for start, (window_ids, source, counts) in windows:
            new += window_ids
            plain += [i for i, s in zip(window_ids, source, strict=True) if not special[start + s]]
            total += counts
        scored, selected, changed, dropped = total.tolist()
        before = [i for i, s in zip(ids, special, strict=True) if not s]
        is_lossy = tokenizer.decode(before, clean_up_tokenization_spaces=False) != text
        if changed or dropped:
            text = tokenizer.decode(plain, clean_up_tokenization_spaces=False)
        return EditedText(text, new, scored, selected, changed, dropped, is_lossy)
