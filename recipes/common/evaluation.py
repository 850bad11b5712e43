"""What a model predicts on rows of text: loss, calibration, rare tokens, and memorised spans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toedit_collate.config.precision import fast_precision

SPAN = 32  # tokens that must all be right for a span to count as memorised
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
        memorised: share of the spans of 32 tokens in which the likeliest token is right at every
            place, that is, which greedy decoding gives back whole; rows are cut in such spans.
        deciles: mean loss of each group of tokens, where groups were given; NaN for an empty one.
    """

    tokens: int
    loss: float
    ece: float
    memorised: float
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
    total: dict[str, Tensor] = {}
    nll_of_group = torch.zeros(0 if groups is None else int(groups.max()) + 1, dtype=torch.float64)
    count_of_group = torch.zeros_like(nll_of_group)
    spans, right_spans = 0, 0
    with torch.no_grad():
        for nll, confidence, right, target in _predictions(model, input_ids, labels):
            known = target != -100
            spans_here, right_here = _spans(right, known)
            spans, right_spans = spans + spans_here, right_spans + right_here
            nll, confidence, right, target = (
                x[known] for x in (nll.double(), confidence.double(), right, target)
            )
            bins = (confidence * NUM_BINS).long().clamp(0, NUM_BINS - 1)
            found = {
                "nll": nll.sum(),
                "count": torch.tensor(float(len(nll))).double(),
                "gap": torch.zeros(NUM_BINS, dtype=torch.float64).index_add_(
                    0, bins, confidence - right.double()
                ),
            }
            total = {name: total.get(name, 0.0) + value for name, value in found.items()}
            if groups is not None:
                nll_of_group.index_add_(0, groups[target], nll)
                count_of_group.index_add_(0, groups[target], torch.ones_like(nll))
    if not total or not total["count"]:
        raise ValueError("labels hold no token to predict: all are -100, or rows have one token")
    count = total["count"].item()
    return Evaluation(
        tokens=int(count),
        loss=total["nll"].item() / count,
        ece=total["gap"].abs().sum().item() / count,
        memorised=right_spans / spans if spans else 0.0,
        deciles=tuple((nll_of_group / count_of_group).tolist()),
    )


def frequency_deciles(counts: Tensor, num_groups: int = 10) -> Tensor:
    """Groups of token ids that have about equal mass in a text, the frequent ones first.

    Args:
        counts: (V,) how often each id stands in the text.
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


def _predictions(
    model: nn.Module, input_ids: Tensor, labels: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Loss, confidence, whether the likeliest token is right, and the target; (n, T - 1) each."""
    device = next(model.parameters()).device
    ids, of = input_ids.split(_ROWS_AT_ONCE), labels.split(_ROWS_AT_ONCE)
    for rows, wanted in zip(ids, of, strict=True):
        with fast_precision(device):
            output: Any = model(input_ids=rows.to(device), use_cache=False)
        target = wanted[:, 1:]
        nll = torch.zeros(target.shape)
        confidence, right = torch.zeros_like(nll), torch.zeros_like(target, dtype=torch.bool)
        for place, logits in enumerate(output.logits[:, :-1]):
            logits = logits.float().cpu()
            total = logits.logsumexp(-1)
            best, likeliest = logits.max(-1)
            given = logits.gather(-1, target[place].clamp(min=0)[:, None])[:, 0]
            nll[place] = total - given
            confidence[place] = (best - total).exp()
            right[place] = likeliest == target[place]
        yield nll, confidence, right, target


def _spans(right: Tensor, known: Tensor) -> tuple[int, int]:
    """How many spans lie in some rows, and how many of them are right at every place."""
    length = right.shape[1] // SPAN * SPAN
    whole = known[:, :length].unflatten(1, (-1, SPAN)).all(-1)
    good = right[:, :length].unflatten(1, (-1, SPAN)).all(-1) & whole
    return int(whole.sum()), int(good.sum())
