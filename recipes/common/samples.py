"""A few documents as they were trained on, with their edits marked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import torch

from toedit_collate.inspection.marking import Passage, mark_markup, token_pieces
from toedit_collate.inspection.scoring import score_batch
from toedit_collate.prior.sharding import has_fsdp1, is_sharded, is_zero3
from toedit_collate.tokens.result import EditResult
from toedit_collate.tokens.token_batch import TokenBatch
from toedit_collate.training.trainee import text_tokenizer
from toedit_collate.transfer import fetch

MAX_BATCHES = 50  # to look for changes in; reading one makes the host wait for the device
MAX_TOKENS = 400  # of a document
NUM_CANDIDATES = 5
CONTEXT = 40  # tokens before the first change, or of the prompt before what has labels
_LEGEND = """\
<pre>
<del>old</del><ins title="P=0.993">new</ins>   changed: old -> new; title: P of the old token
<u>kept</u>     selected: resampled too, and the same token came out
</pre>
Marks are markup: `<` in the text itself is written as `&lt;`."""


class Samples:
    """Takes documents from the batches of a run: changed ones, if there are any among the first.

    Args:
        wanted: how many.
        tokenizer: of the trainee, or a processor with one.
        prior: that edits; says how probable the old tokens and their runners-up were. None: that is
            left out.
    """

    def __init__(self, wanted: int, tokenizer: Any, prior: Any = None) -> None:
        self.wanted = wanted
        self.prior = prior
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
        for passage, document, start in _documents(batch, result):
            # With a journal, changes since the source are known, and not what was selected.
            if any(passage.selected) or passage.num_changed or passage.num_removed:
                self._found.append(_Sample(self._num_batches, passage, document, start))
        # Changed ones first; sorting keeps the order in which they came.
        self._found.sort(key=lambda sample: not sample.is_edited)
        del self._found[self.wanted :]
        if self.prior is not None:  # now, before it may be swapped
            self._found = [sample.with_probability(self.prior) for sample in self._found]

    @property
    def _num_edited(self) -> int:
        return sum(sample.is_edited for sample in self._found)

    def as_text(self) -> str:
        """The samples in Markdown."""
        if not self._found:
            return "No token was selected or removed in the batches that were looked at.\n"
        lines = ["# Edited training documents", "", _LEGEND, ""]
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
                "<pre>",
                mark_markup(passage, self.tokenizer).strip("\n"),
                "</pre>",
                "",
                *sample.details(self.tokenizer),
            ]
        return "\n".join(lines)

    def as_page(self) -> str | None:
        """The samples as a page of HTML; None where there is none, or no tokenizer."""
        if not self._found or self.tokenizer is None:
            return None
        from .samples_page import as_page

        named = [
            (f"{number}. Batch {sample.batch}", sample.passage, sample.candidates)
            for number, sample in enumerate(self._found, 1)
        ]
        return as_page(named, self.tokenizer)


@dataclass(frozen=True)
class _Sample:
    batch: int
    passage: Passage
    document: list[int]
    start: int
    # Place in the passage -> (token id, P) of the most probable tokens there, at edits.
    candidates: dict[int, list[tuple[int, float]]] = field(default_factory=dict)

    @property
    def is_edited(self) -> bool:
        return self.passage.num_changed + self.passage.num_removed > 0

    def with_probability(self, prior: Any) -> _Sample:
        """The same with what the prior gives each of the old tokens, and others in their places."""
        if self.passage.probability is not None:
            return self
        counts = dict(getattr(prior, "counts", {}))  # of an aligned prior: this is no training
        scored = score_batch(prior, TokenBatch.of(torch.tensor([self.document]), None, None, None))
        chances = torch.full((len(self.document),), math.nan)
        chances[scored.where] = scored.logprob.exp()
        edited = torch.zeros(len(self.document), dtype=torch.bool)
        for i, (old, new) in enumerate(zip(self.passage.before, self.passage.after, strict=True)):
            edited[self.start + i] = old != new
        at = edited[scored.where].nonzero().squeeze(-1)
        ids, values = (found.tolist() for found in scored.most_probable(at, NUM_CANDIDATES))
        places = (scored.where[at] - self.start).tolist()
        if counts:
            prior.counts.update(counts)
        part = chances[self.start : self.start + len(self.passage.before)].tolist()
        return replace(
            self,
            passage=replace(self.passage, probability=part),
            candidates={
                place: list(zip(*found, strict=True))
                for place, *found in zip(places, ids, values, strict=True)
            },
        )

    def details(self, tokenizer: Any) -> list[str]:
        """A line for each edit, with P of the old token and the runners-up; as Markdown."""
        passage, lines = self.passage, []
        if passage.probability is None:
            return []
        for i, found in sorted(self.candidates.items()):

            def text(token: int, before: list[int] = passage.before[:i]) -> str:
                return repr(token_pieces(tokenizer, [*before, token])[-1])

            old, new = passage.before[i], passage.after[i]
            others = [f"{text(token)} {p:.3g}" for token, p in found if token != old]
            lines.append(
                f"{text(old)} -> {'nothing' if new is None else text(new)}: "
                f"P = {passage.probability[i]:.4f}; runners-up: {', '.join(others)}"
            )
        return ["<pre>", *(escape(line, quote=False) for line in lines), "</pre>", ""] * bool(lines)


def _documents(batch: dict[str, Any], result: EditResult) -> list[tuple[Passage, list[int], int]]:
    """Each document of a batch; of a long one, the part around its first change.

    Beside the passage, the tokens of the whole document, and where in it the passage begins.
    """
    labels = fetch(batch["labels"])[0] if "labels" in batch else None
    documents = TokenBatch.collated(batch).documents
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
    width = ids.shape[1]
    for start, length in zip(documents.start.tolist(), documents.lengths, strict=True):
        cells = documents.index[start : start + length]
        row, place = int(cells[0]) // width, cells % width
        has_loss = None if labels is None else (labels[row][place] != -100).tolist()
        passages.append(_passage(ids[row], after[row], selected[row], place, has_loss))
    return passages


def _passage(
    ids: Any, after: Any, selected: Any, where: Any, has_loss: list[bool] | None
) -> tuple[Passage, list[int], int]:
    before, new = ids[where].tolist(), after[where].tolist()
    changed = [i for i, (old, now) in enumerate(zip(before, new, strict=True)) if old != now]
    first = changed[0] if changed else 0
    if has_loss is not None and True in has_loss[: first + 1]:
        first = max(has_loss.index(True), first - MAX_TOKENS // 4)  # little of a prompt
    start = max(0, first - CONTEXT)
    part = slice(start, start + MAX_TOKENS)
    passage = Passage(
        before=before[part],
        after=[None if token < 0 else token for token in new[part]],
        selected=selected[where].tolist()[part],
    )
    return passage, before, start


def prior_for_samples(collator: Any) -> Any:
    """The prior that can score a document on its own; None: it takes all ranks, or is a cache."""
    return scoring_prior(getattr(collator, "prior", None))


def scoring_prior(prior: Any) -> Any:
    """This prior, if it can score a document on its own; see `prior_for_samples`."""
    model = getattr(getattr(prior, "unaligned", None), "model", None)
    if model is None or is_sharded(model) or is_zero3(model) or has_fsdp1(model):
        return None
    return prior
