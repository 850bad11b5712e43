"""Perplexity of a saved model on held-out texts: per token, and per document."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from toedit_collate import EditPolicy, edit_tokens
from toedit_collate.prior.base import BasePrior

FIRST = 1024  # tokens of a document that count for its own loss, as in the authors' evaluation
_SCORE_ONLY = EditPolicy(region="none")


def perplexity(
    model: BasePrior, texts: Iterable[str], *, max_length: int, batch_size: int = 8
) -> dict[str, float]:
    """Measure a model on documents, each on its own, in windows of `max_length` tokens.

    Source: arXiv:2412.14689, Appendix C.2 (per token). Table 1 averages over documents instead.

    Args:
        model: with its tokenizer.
        texts: the documents.
        max_length: tokens of a window.
        batch_size: windows that are scored at once.

    Returns:
        `per_token`: exp of the mean loss of all tokens. `per_document`: exp of the mean over
        documents of the mean loss of their first 1,024 tokens; `stderr`: its standard error.
        `tokens`, `documents`: how many were scored.

    Raises:
        ValueError: no text has two tokens.
    """
    tokenizer: Any = model.tokenizer
    windows: list[tuple[int, int, list[int]]] = []  # document, first position, ids
    for number, text in enumerate(texts):
        ids = tokenizer(text, verbose=False)["input_ids"]
        for start in range(0, len(ids), max_length):
            if len(ids) > start + 1:  # the first token of a window is not scored
                windows.append((number, start, ids[start : start + max_length]))
    if not windows:
        raise ValueError("no text has two tokens; there is nothing to score")
    windows.sort(key=lambda window: len(window[2]))
    loss, tokens = 0.0, 0
    by_document: dict[int, list[float]] = {}  # document -> sum and number
    for first in range(0, len(windows), batch_size):
        batch = windows[first : first + batch_size]
        found = token_losses(model, [ids for *_, ids in batch])
        for (number, start, _), nll in zip(batch, found, strict=True):
            loss, tokens = loss + float(nll.sum()), tokens + len(nll)
            early = nll[: max(FIRST - start - 1, 0)]
            entry = by_document.setdefault(number, [0.0, 0])
            entry[0] += float(early.sum())
            entry[1] += len(early)
    means = [total / count for total, count in by_document.values() if count]
    mean = statistics.fmean(means)
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return {
        "per_token": math.exp(loss / tokens),
        "per_document": math.exp(mean),
        "stderr": math.exp(mean) * error,
        "tokens": tokens,
        "documents": len(means),
    }


def token_losses(model: BasePrior, rows: Sequence[list[int]]) -> list[torch.Tensor]:
    """Loss of each token of each row of ids but its first, float64; NaN: the model can't score it.

    All rows are scored at once.
    """
    ids = torch.zeros(len(rows), max(2, *map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    found = edit_tokens(
        model, ids, attention_mask=mask, policy=_SCORE_ONLY, return_logprob=True
    ).logprob
    assert found is not None
    nll = -found.double().cpu()
    return [losses[1 : len(row)] for losses, row in zip(nll, rows, strict=True)]
