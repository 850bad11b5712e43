"""A trial of a model on a few tokens, before it becomes a prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import first_line
from ..head.projection import Head
from .families import find_trunk

# Tokens of the trial: two rows that begin alike and end differently.
_LENGTH, _SAME = 8, 4


def check_model(
    model: Any, lm: Any, head: Callable[[], Head], run: Callable[[Callable[[], Any]], Any],
    device: torch.device, *, whole: bool,
) -> None:  # fmt: skip
    """Raise where a prior's scores would differ from what the model computes from left to right.

    `lm` is the model of transformers inside `model`, and `head` finds its vocabulary projection.
    `run` calls a function with the model's weights gathered. If `whole`, what wraps `lm` must
    compute the same.

    Raises:
        ValueError: the logits differ from the model's own, a token sees later tokens, or scores are
            random.
    """
    name = type(lm).__name__
    if "lsh" in (getattr(lm.config, "attn_layers", None) or ()):  # a short trial does not show it
        raise ValueError(
            f"model: {name} chooses what a token attends to by random hashes of the whole row, so "
            "its scores are random; use a prior of another family"
        )
    ids = _trial_ids(head().vocab_size).to(device)

    def compute() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # .forward: under FSDP2, this is already inside the call of the model.
        expected = lm.forward(input_ids=ids, use_cache=False).logits
        hidden = find_trunk(lm)(input_ids=ids, use_cache=False, return_dict=True)[0]
        outer = model(input_ids=ids, use_cache=False).logits if whole else expected
        if hidden.shape[-1] != head().weight.shape[-1]:  # there are layers in between
            return expected, hidden, hidden, outer
        return expected, hidden, head().logits(hidden.flatten(0, 1)).view(*ids.shape, -1), outer

    try:
        expected, hidden, ours, outer = run(compute)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model of any family may raise
        raise ValueError(
            f"model: {name} fails on plain rows of token ids ({type(error).__name__}: "
            f"{first_line(error)[:200]}); a prior is called with input_ids alone, so check that "
            "the model runs by model(input_ids=...), and its config"
        ) from error
    # 16-bit models round a logit at 2**-8 of its size, and may be off by a few such steps.
    tolerance = 1e-4 if hidden.dtype in (torch.float32, torch.float64) else 0.05
    if _difference(*hidden[:, :_SAME]) > tolerance:
        raise ValueError(
            f"model: {name} is not causal: its states of a token change with later tokens, so it "
            "would see a token before it predicts it; use a model that reads from left to right "
            "(for BERT and similar models, one made with is_decoder=True)"
        )
    difference = _difference(ours.to(expected.device), expected)
    if difference > tolerance:
        raise ValueError(
            f"model: {name} computes its logits in a way that toedit_collate does not know. They "
            f"differ by {difference:.2g} of their size from those of its last hidden states, its "
            "output embeddings, and the scales and caps in its config; use a prior of another "
            "family"
        )
    difference = _difference(outer, expected)
    if difference > tolerance:
        raise ValueError(
            f"model: what PEFT put around {name} (a learned prompt, for example) changes its "
            f"logits by {difference:.2g} of their size, which a prior would leave out; pass the "
            "model without it (model.get_base_model()), or one tuned with LoRA"
        )


def _trial_ids(vocab_size: int) -> Tensor:
    """(2, _LENGTH) int64. Not the first ids, which are special tokens."""
    row = (torch.arange(_LENGTH) * 7 + vocab_size // 3) % vocab_size
    other = row.clone()
    other[_SAME:] = (row[_SAME:] + vocab_size // 2 + 1) % vocab_size
    return torch.stack([row, other])


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference relative to the largest value; infinity for other shapes."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.float(), theirs.float()
    # Masked ids (-inf) are equal where both have them.
    far = (ours - theirs).abs().masked_fill_(ours == theirs, 0.0)
    largest = theirs.masked_fill(theirs.isinf(), 0.0).abs().max()
    return float(far.max() / (1 + largest))
