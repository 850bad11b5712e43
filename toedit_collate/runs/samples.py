"""A few documents as they were trained on, with their edits marked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..tokens.result import EditResult
from ..tools.marking import Passage, legend, mark_edits
from ..training.batch_layout import read_layout
from ..training.trainee import text_tokenizer
from ..transfer import fetch

MAX_BATCHES = 50  # to look for changes in; reading one makes the host wait for the device
MAX_TOKENS = 400  # of a document


class Samples:
    """Takes documents from the batches of a run: changed ones, if there are any among the first.

    Args:
        wanted: how many.
        tokenizer: of the trainee, or a processor with one.
    """

    def __init__(self, wanted: int, tokenizer: Any) -> None:
        self.wanted = wanted
        self.adopt_tokenizer(tokenizer)
        self._found: list[_Sample] = []
        self._num_batches = 0

    def adopt_tokenizer(self, tokenizer: Any) -> None:
        """Use the tokenizer, or the one of a processor, to make text of tokens."""
        self.tokenizer = text_tokenizer(tokenizer)

    def add(self, batch: dict[str, Any], result: EditResult) -> None:
        """Look through a batch; what `ToEditCollator.on_edit` is called with."""
        self._num_batches += 1
        if self._num_batches > MAX_BATCHES or self._num_edited >= self.wanted:
            return
        for passage in _documents(batch, result):
            # With a journal, changes since the source are known, and not what was selected.
            if any(passage.selected) or passage.num_changed or passage.num_removed:
                self._found.append(_Sample(self._num_batches, passage))
        # Changed ones first; sorting keeps the order in which they came.
        self._found.sort(key=lambda sample: not sample.is_edited)
        del self._found[self.wanted :]

    @property
    def _num_edited(self) -> int:
        return sum(sample.is_edited for sample in self._found)

    def as_text(self) -> str:
        """The samples in Markdown."""
        if not self._found:
            return "No token was selected or removed in the batches that were looked at.\n"
        lines = [
            "# Edited training documents",
            "",
            *legend(color=False, probability=None).splitlines(),
            "",
        ]
        for number, sample in enumerate(self._found, 1):
            passage = sample.passage
            counts = {
                "selected": sum(passage.selected),
                "changed": passage.num_changed,
                "removed": passage.num_removed,
            }
            said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            lines += [
                f"## {number}. Batch {sample.batch}: of {len(passage.before)} tokens {said}",
                "",
                "````text",
                mark_edits(passage, self.tokenizer, color=False),
                "````",
                "",
            ]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Sample:
    batch: int
    passage: Passage

    @property
    def is_edited(self) -> bool:
        return self.passage.num_changed + self.passage.num_removed > 0


def _documents(batch: dict[str, Any], result: EditResult) -> list[Passage]:
    """Each document of a batch; of a long one, the part around its first change."""
    layout = read_layout(batch)
    positions, mask = layout.position_ids, layout.attention_mask
    given = [batch["input_ids"], result.tokens, result.selected, result.dropped]
    ids, new, selected, dropped = fetch(*given)
    after = ids.clone()
    if result.source is None:
        after = new
    else:
        (source,) = fetch(result.source)
        for row in range(len(ids)):
            real = source[row] >= 0
            after[row, source[row][real]] = new[row][real]
    after = torch.where(dropped, -1, after)
    passages = []
    for row in range(len(ids)):
        real = torch.ones_like(ids[row], dtype=torch.bool)
        if mask is not None:
            real = fetch(mask)[0][row].bool()
        where = real.nonzero().squeeze(-1)
        begins = [0]
        if positions is not None:
            own = fetch(positions)[0].expand_as(ids)[row, where]
            begins += ((own[1:] != own[:-1] + 1).nonzero().squeeze(-1) + 1).tolist()
        for begin, end in zip(begins, [*begins[1:], len(where)], strict=True):
            passages.append(_passage(ids[row], after[row], selected[row], where[begin:end]))
    return passages


def _passage(ids: Any, after: Any, selected: Any, where: Any) -> Passage:
    before, new = ids[where].tolist(), after[where].tolist()
    changed = [i for i, (old, now) in enumerate(zip(before, new, strict=True)) if old != now]
    start = max(0, min((changed or [0])[0] - MAX_TOKENS // 4, len(before) - MAX_TOKENS))
    part = slice(start, start + MAX_TOKENS)
    return Passage(
        before=before[part],
        after=[None if token < 0 else token for token in new[part]],
        selected=selected[where].tolist()[part],
    )
