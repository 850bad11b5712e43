"""What a model predicts on rows of text: loss, calibration, and loss on rare tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from common.precision import fast_precision
from torch import Tensor, nn

NUM_BINS = 15  # of confidence, for the calibration error
_ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts the labelled tokens of some rows.

    Attributes:
        tokens: how many were predicted.
        loss: mean negative log-probability of them, nats.
        ece: expected calibration error of the likeliest next token, in 15 bins of confidence: the
            mean distance between confidence and accuracy, 0 to 1.
        deciles: mean loss of each group of tokens, where groups were given; NaN for an empty one.
    """

    tokens: int
    loss: float
    ece: float
    deciles: tuple[float, ...] = ()


def evaluate(
    model: nn.Module, input_ids: Tensor, labels: Tensor, *, groups: Tensor | None = None
) -> Evaluation:
    """Predict each labelled token from those before it in its row; the model is put in eval mode.

    Args:
        model: a causal language model of transformers.
        input_ids: (N, T) int64; the rows end with padding, if they have any.
        labels: (N, T) int64, -100 where nothing is predicted; a row's first token never is.
        groups: (V,) int64, the group of each id, as `frequency_deciles` gives it.

    Raises:
        ValueError: there is no labelled token.
    """
    model.eval()
    nll_sum, count = 0.0, 0
    gaps = torch.zeros(NUM_BINS, dtype=torch.float64)
    group_nll = torch.zeros(0 if groups is None else int(groups.max()) + 1, dtype=torch.float64)
    group_count = torch.zeros_like(group_nll)
    with torch.no_grad():
        for rows, wanted in zip(
            input_ids.split(_ROWS_AT_ONCE), labels.split(_ROWS_AT_ONCE), strict=True
        ):
            target = wanted[:, 1:]
            nll, confidence, right = _predict(model, rows, target)
            known = target != -100
            nll, confidence, right, target = (
                x[known] for x in (nll.double(), confidence.double(), right, target)
            )
            nll_sum, count = nll_sum + nll.sum().item(), count + len(nll)
            bins = (confidence * NUM_BINS).long().clamp(0, NUM_BINS - 1)
            gaps.index_add_(0, bins, confidence - right.double())
            if groups is not None:
                group_nll.index_add_(0, groups[target], nll)
                group_count.index_add_(0, groups[target], torch.ones_like(nll))
    if not count:
        raise ValueError("labels hold no token to predict: all are -100, or rows have one token")
    return Evaluation(
        tokens=count,
        loss=nll_sum / count,
        ece=gaps.abs().sum().item() / count,
        deciles=tuple((group_nll / group_count).tolist()),
    )


def frequency_deciles(counts: Tensor, num_groups: int = 10) -> Tensor:
    """Groups of token ids that have about equal mass in a text, the frequent ones first.

    Args:
        counts: (V,) how often each id is in the text.
        num_groups: 10 for deciles.

    Returns:
        (V,) int64, 0 for the most frequent ids, `num_groups` - 1 for the rarest and those that the
        text does not have.

    Example:
        >>> frequency_deciles(torch.tensor([1, 8, 1, 0]), 2).tolist()
        [1, 0, 1, 1]
    """
    order = torch.argsort(counts, descending=True, stable=True)
    before = counts[order].cumsum(0).double() - counts[order].double()
    groups = torch.empty_like(order)
    share = before / counts.sum().clamp(min=1)
    groups[order] = (share * num_groups).long().clamp(max=num_groups - 1)
    return groups


def _predict(model: Any, ids: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, confidence, and whether the likeliest token is right; (n, T - 1) each."""
    device = next(model.parameters()).device
    with fast_precision(device):
        output = model(input_ids=ids.to(device), use_cache=False)
    nll, confidence = torch.zeros(target.shape), torch.zeros(target.shape)
    right = torch.zeros_like(target, dtype=torch.bool)
    for place, logits in enumerate(output.logits[:, :-1]):
        logits = logits.float().cpu()
        total = logits.logsumexp(-1)
        best, likeliest = logits.max(-1)
        nll[place] = total - logits.gather(-1, target[place].clamp(min=0)[:, None])[:, 0]
        confidence[place] = (best - total).exp()
        right[place] = likeliest == target[place]
    return nll, confidence, right
