"""What the prior thinks of the tokens of a batch, checked; and a sample for its perplexity."""

from __future__ import annotations

import torch
from torch import Tensor

from ..head.logprob import Scores
from ..policy import EditPolicy
from ..prior.base import Predictions
from ..tokens.checks import check_finite


def score(
    predictions: Predictions,
    policy: EditPolicy,
    editable: Tensor,
    *,
    exact: bool = False,
    num_sampled: int = 0,
) -> tuple[Scores, Tensor]:
    """Log P of n tokens; the host waits for the device once.

    Args:
        predictions: of the prior at the tokens.
        policy: where none of its decisions turns, log P may stay a bound (`policy.lowest_cut`).
        editable: (n,) bool, on the host: of these a sample is taken.
        exact: whether all log P must be exact.
        num_sampled: how many tokens at most are in the sample.

    Returns:
        The scores; and (S,) float32, exact log P of the sample, evenly spread.

    Raises:
        ValueError: the prior returned NaN or infinity.
    """
    sampled = editable.nonzero().squeeze(-1)
    if num_sampled < len(sampled):
        sampled = sampled[torch.linspace(0, len(sampled) - 1, num_sampled).long()]
    sample = predictions.exact_logprob(sampled)
    scores = predictions.score(policy, exact=exact)
    check_finite(scores.is_finite)
    return scores, sample
