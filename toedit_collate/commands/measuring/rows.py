"""Batches of real text for a real prior."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ...data import Data, Preparation, examples
from ...prior.prior import Prior

Batch = dict[str, Any]
"""input_ids, attention_mask and labels, (B, T) int64 on the CPU, padded on the right."""
Example = tuple[list[int], list[int]]
"""Token ids and labels of a document, or of a piece of one."""
_SPARE = 4  # so many times as many pieces are read as are needed, and then chosen from


def text_batches(prior: Prior, data: Data, *, num: int, B: int, T: int, seed: int) -> list[Batch]:
    """Up to `num` batches from a data file; documents longer than T tokens are cut into windows.

    The labels of prompts are -100.

    Raises:
        UnusableError: the file can't be read, or holds too little.
    """
    found = examples(data, prior.tokenizer, Preparation(max_length=T), vocab_size=prior.vocab_size)
    # Of a long document the last, shorter window is left out: batches of those are full.
    whole = (one for one in found if len(one.ids) > 1 and (not one.start or len(one.ids) == T))
    pieces = [(one.ids, one.labels) for one in islice(whole, _SPARE * num * B)]
    if len(pieces) < B:
        raise data.error(
            f"gives {len(pieces)} pieces of up to {T} tokens, and a batch takes {B}; give more "
            "text, or a smaller --batch-size"
        )
    if all(label == -100 for _, labels in pieces for label in labels[1:]):
        raise data.error(
            "no token has a label other than -100, so none would be edited; mend the labels, or "
            "leave them out"
        )
    random.Random(seed).shuffle(pieces)
    num = min(num, len(pieces) // B)
    return [_pad(pieces[n * B : (n + 1) * B], prior.pad_id) for n in range(num)]


def _pad(examples: list[Example], pad_id: int) -> Batch:
    T = max(len(ids) for ids, _ in examples)

    def column(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (T - len(row)) for row in values])

    return {
        "input_ids": column([ids for ids, _ in examples], pad_id),
        "attention_mask": column([[1] * len(ids) for ids, _ in examples], 0),
        "labels": column([labels for _, labels in examples], -100),
    }
