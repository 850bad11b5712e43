"""Cross-entropy with labels that are made of many draws.

A label of n draws is a distribution: each id has its share of the draws. Its cross-entropy is the
mean of n hard cross-entropies, so its gradient is an unbiased estimate of the gradient of
KL(prior || trainee). Source: random sampling distillation, Anshumann et al., "Sparse Logit
Sampling", ACL 2025, arXiv:2503.16870.

A batch carries its draws as (B, T, K, 2) integers: for each label, up to K different ids and their
counts. Unused places have the count 0. `labels` are those of the source text, and -100 where there
is no loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .projection import MAX_TILE_ELEMENTS, MAX_TILE_ELEMENTS_GPU, Head

KEY = "draws"  # of a batch
IGNORED = -100


def soft_cross_entropy(
    logits: Tensor, draws: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Mean cross-entropy of the logits with the drawn labels, for plain training loops.

    The loss of one label is -sum_k (count_k / n) log p_k, with n the sum of its counts. Logits at t
    predict the label at t + 1, as in the causal loss of transformers.

    Args:
        logits: (B, T, V), of any floating dtype; computed in float32, or float64 if they are.
        draws: (B, T, K, 2) integers, `batch.pop("draws")`: ids and counts.
        labels: (B, T) integers, -100 where there is no loss.
        num_items_in_batch: number of labels to divide by, as a Trainer counts it over accumulation
            steps; None: those of this batch.

    Returns:
        (), the loss, in nats per label.

    Raises:
        ValueError: the shapes do not fit each other.

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
        >>> draws = torch.tensor([[[[0, 0], [0, 0]], [[1, 3], [2, 1]]]])  # id 1 thrice, id 2 once
        >>> round(float(soft_cross_entropy(logits, draws, torch.tensor([[0, 1]]))), 4)  # log 3
        1.0986
    """
    log_prob, known = expected_log_prob(logits, draws, labels)
    return -log_prob.sum() / num_labels(known, num_items_in_batch)


def expected_log_prob(logits: Tensor, draws: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """sum_k (count_k / n) log p_k of each predicted token, and where there is a label.

    Arguments and errors as for `soft_cross_entropy`. Returns (B, T - 1) each; 0 without a label.
    """
    _check_shapes(tuple(logits.shape[:2]), draws, labels)
    known, ids, shares = _shifted(draws, labels)
    kept = logits[:, :-1][known]
    log_p = (kept if kept.dtype == torch.float64 else kept.float()).log_softmax(-1)
    found = (shares.to(log_p.dtype) * log_p.gather(1, ids)).sum(-1)
    return found.new_zeros(known.shape).masked_scatter(known, found), known


def num_labels(known: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """The divisor of a loss: (), at least 1."""
    count = known.sum() if num_items_in_batch is None else num_items_in_batch
    return torch.as_tensor(count, device=known.device).clamp(min=1)


def drawn_log_prob(
    head: Head, hidden: Tensor, draws: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cross-entropy of drawn labels from hidden states, without the (B, T, V) logits.

    `hidden` is (B, T, D). Other arguments and errors as for `soft_cross_entropy`.

    Returns:
        Of the T - 1 predicted tokens, (B, T - 1) each, 0 or False without a label: the expected log
        probability of the drawn label (float32, differentiable), the entropy of the prediction in
        nats, whether the most probable id is the one in `labels`, and where there is a label.
    """
    _check_shapes(tuple(hidden.shape[:2]), draws, labels)
    known, ids, shares = _shifted(draws, labels)
    device, kind = head.weight.device, head.weight.device.type
    dtype = head.weight.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    # Each tile adds to the gradient of the whole head, so tiles are larger than those of an edit.
    most = 4 * (MAX_TILE_ELEMENTS_GPU if kind == "cuda" else MAX_TILE_ELEMENTS)
    rows = max(1, most // head.vocab_size)
    states = hidden[:, :-1][known].to(device, dtype)
    columns = (states, ids.to(device), shares.to(device), labels[:, 1:][known].to(device))
    with torch.autocast(kind, enabled=False):
        bias = None if head.bias is None else head.bias.to(dtype)
        own = dataclasses.replace(head, weight=head.weight.to(dtype), bias=bias)
        # checkpoint: the backward pass computes the logits of a tile again.
        log_probs, metrics = [], []
        for tile in zip(*(column.split(rows) for column in columns), strict=True):
            metrics.append(list[Tensor]())
            log_probs.append(
                checkpoint(
                    _score_draws, own, *tile, metrics[-1],
                    use_reentrant=False, preserve_rng_state=False,
                )
            )  # fmt: skip
    known = known.to(device)

    def spread(values: Iterable[Tensor]) -> Tensor:
        # masked_scatter keeps the result connected to the model where there is no label.
        joined = torch.cat(list(values))
        return joined.new_zeros(known.shape).masked_scatter(known, joined)

    entropy, is_top1 = map(spread, zip(*metrics, strict=True))
    return spread(log_probs), entropy, is_top1, known


def _score_draws(
    head: Head,
    hidden: Tensor,
    ids: Tensor,
    shares: Tensor,
    labels: Tensor,
    metrics: list[Tensor],
) -> Tensor:
    """sum_k share_k log p_k of n states. Once, the entropy, and whether the label is likeliest.

    These are appended to `metrics`, and not computed again in the backward pass.
    """
    log_p = head.logits(hidden).log_softmax(-1)
    if not metrics:
        with torch.no_grad():
            metrics += [-(log_p.exp() * log_p).sum(-1), log_p.argmax(-1) == labels]
    return (shares * log_p.gather(1, ids)).sum(-1)


def _shifted(draws: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T - 1) bool where there is a label; ids and shares of the N labels, (N, K) each."""
    known = labels[:, 1:] != IGNORED
    ids, counts = draws[:, 1:][known].unbind(-1)
    shares = counts.float() / counts.sum(-1, keepdim=True).clamp(min=1)
    return known, ids.long(), shares


def _check_shapes(positions: tuple[int, ...], draws: Tensor, labels: Tensor) -> None:
    if draws.dim() != 4 or draws.shape[-1] != 2 or draws.shape[:2] != labels.shape:
        raise ValueError(
            f"draws must have the shape (B, T, K, 2) of the labels {tuple(labels.shape)}, got "
            f"{tuple(draws.shape)}; take them from the batch that the collator made, and leave its "
            "rows as they are"
        )
    if positions != labels.shape:
        raise ValueError(
            f"labels have the shape {tuple(labels.shape)}, and the model's output is for "
            f"{positions}; num_draws > 1 does not support prompt tuning, which lengthens the text"
        )
