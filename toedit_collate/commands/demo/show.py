"""The passage of the training data that shows the most edits."""

from __future__ import annotations

import time
from typing import Any

import torch

from ...editing.edit import EditResult, edit_tokens
from ...inspection.marking import Passage, token_pieces
from ...policy import EditPolicy
from ...prior.prior import Prior
from .measure import Batch

_SECONDS = 10.0


def find_passage(
    prior: Prior, batches: list[Batch], policy: EditPolicy, num_tokens: int = 110
) -> Passage:
    """The window of `num_tokens` tokens with the most edits, and then the most selected.

    With a slow prior, the search ends after some seconds.
    """
    started = time.perf_counter()
    best: tuple[int, int] = (-1, -1)
    passage = Passage([], [], [], [])
    for batch in batches:
        result = edit_tokens(prior, **batch, policy=policy, return_logprob=True)
        for row in range(len(result.input_ids)):
            real = batch["attention_mask"][row].bool()
            for start in range(0, max(1, int(real.sum()) - num_tokens + 1), 8):
                window = real.nonzero().squeeze(-1)[start : start + num_tokens]
                edits = int((result.changed | result.dropped)[row, window].sum())
                score = (edits, int(result.selected[row, window].sum()))
                if score > best:
                    best, passage = score, _cut(batch, result, row, window)
        if time.perf_counter() - started > _SECONDS:
            break
    return _from_word_start(passage, prior.tokenizer)


def _cut(batch: Batch, result: EditResult, row: int, window: torch.Tensor) -> Passage:
    assert result.logprob is not None
    edited = result.tokens[row]
    if result.source is not None:  # tokens were removed: back to where the others were
        edited = batch["input_ids"][row].clone()
        real = result.source[row] >= 0
        edited[result.source[row][real]] = result.tokens[row][real]
    removed = result.dropped[row, window].tolist()
    after = zip(edited[window].tolist(), removed, strict=True)
    return Passage(
        before=batch["input_ids"][row, window].tolist(),
        after=[None if gone else token for token, gone in after],
        selected=result.selected[row, window].tolist(),
        probability=result.logprob[row, window].exp().tolist(),
    )


def _from_word_start(passage: Passage, tokenizer: Any) -> Passage:
    """Leave out the end of a word at the start of the passage."""
    if tokenizer is None:
        return passage
    pieces = token_pieces(tokenizer, passage.before)
    for start, piece in enumerate(pieces[:8]):
        if piece[:1].isspace():
            return Passage(*(values[start:] for values in vars(passage).values()))
        if passage.selected[start]:
            break
    return passage
