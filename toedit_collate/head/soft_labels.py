"""Cross-entropy with labels that are made of many draws.

A label of n draws is a distribution: each id has the share of the draws that it got. Its
cross-entropy is the mean of the n hard cross-entropies, so its gradient is an unbiased estimate of
the gradient of KL(prior || trainee) (random sampling distillation: Anshumann et al., "Sparse Logit
Sampling", ACL 2025, arXiv:2503.16870).

A batch carries its draws in one tensor (B, T, K, 2) of integers: for each label, up to K different
ids and how often each was drawn. Unused places have the count 0. `labels` keep the source text, and
say with -100 where there is no loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .projection import MAX_TILE_ELEMENTS, MAX_TILE_ELEMENTS_GPU, Head

KEY = "draws"  # of a batch
IGNORED = -100


def soft_cross_entropy(
    logits: Tensor,
    draws: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Mean cross-entropy of the logits with the drawn labels, for training loops of your own.

    The loss of one label is -sum_k (count_k / n) log p_k, with n the sum of its counts. Logits at t
    predict the label at t + 1: the same shift as the causal loss of transformers.

    Args:
        logits: (B, T, V), of any floating dtype; computed in float32, or float64 where they are.
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

    Args and errors as for `soft_cross_entropy`. Returns (B, T - 1) each; 0 without a label.
    """
    _check_shapes(tuple(logits.shape[:2]), draws, labels)
    known, ids, shares = _shifted(draws, labels)
    kept = logits[:, :-1][known]
    log_p = (kept if kept.dtype == torch.float64 else kept.float()).log_softmax(-1)
    found = (shares.to(log_p.dtype) * log_p.gather(1, ids)).sum(-1)
    return found.new_zeros(known.shape).masked_scatter(known, found), known


def num_labels(known: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """What a loss is divided by: (), never 0."""
    count = known.sum() if num_items_in_batch is None else num_items_in_batch
    return torch.as_tensor(count, device=known.device).clamp(min=1)


def drawn_log_prob(
    head: Head, hidden: Tensor, draws: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cross-entropy of drawn labels from hidden states, without the (B, T, V) logits.

    Args:
        head: the vocabulary projection; its `weight` must be there.
        hidden: (B, T, D), the last hidden states.
        draws: (B, T, K, 2) integers, ids and counts.
        labels: (B, T), -100 where there is no loss.

    Returns:
        Of the T - 1 predicted tokens, (B, T - 1) each, 0 or False without a label: the expected log
        probability of the drawn label (float32, differentiable), the entropy of the prediction in
        nats, whether the likeliest id is the one in `labels`, and where there is a label.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    _check_shapes(tuple(hidden.shape[:2]), draws, labels)
    assert head.weight is not None
    known, ids, shares = _shifted(draws, labels)
    device = head.weight.device
    states, weight, bias = hidden[:, :-1][known].to(device), head.weight, head.bias
    kind = device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else weight.dtype
    with torch.autocast(kind, enabled=False):
        log_prob, entropy, is_top1 = _DrawnLogProb.apply(
            states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype),
            ids.to(device), shares.to(device), labels[:, 1:][known].to(device),
            head.scale, head.softcap,
        )  # fmt: skip
    known = known.to(device)

    def spread(values: Tensor) -> Tensor:
        # masked_scatter keeps the result connected to the model where no label is known.
        return values.new_zeros(known.shape).masked_scatter(known, values)

    return spread(log_prob), spread(entropy), spread(is_top1), known


def _shifted(draws: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T - 1) bool where there is a label; of the N labels: ids (N, K) and shares (N, K)."""
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


class _DrawnLogProb(torch.autograd.Function):
    """sum_k share_k log p_k of N states, in tiles of rows; backward computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        shares: Tensor,
        labels: Tensor,
        scale: float,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        most = MAX_TILE_ELEMENTS_GPU * 4 if hidden.is_cuda else MAX_TILE_ELEMENTS
        ctx.rows = max(1, most // len(weight))
        ctx.scale, ctx.softcap = scale, softcap
        ctx.save_for_backward(hidden, weight, bias, ids, shares)
        parts = []
        for h, i, s, y in _tiles(ctx.rows, hidden, ids, shares, labels):
            logits, _ = _logits(h, weight, bias, scale, softcap)
            log_p = logits.log_softmax(-1)
            entropy = -(log_p.exp() * log_p).sum(-1)
            parts.append(((s * log_p.gather(1, i)).sum(-1), entropy, log_p.argmax(-1) == y))
        if not parts:
            nothing = hidden.new_zeros(0, dtype=torch.float32)
            return nothing, nothing.clone(), torch.zeros_like(labels, dtype=torch.bool)
        log_prob, entropy, is_top1 = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.mark_non_differentiable(entropy, is_top1)
        return log_prob, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, weight, bias, ids, shares = ctx.saved_tensors
        to_hidden = torch.zeros_like(hidden)
        to_weight = (
            torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        )
        wants_bias = bias is not None and ctx.needs_input_grad[2]
        to_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        for h, i, s, g, into in _tiles(ctx.rows, hidden, ids, shares, grads[0], to_hidden):
            logits, slope = _logits(h, weight, bias, ctx.scale, ctx.softcap)
            # d/dz_j of sum_k s_k log p_k = s_j - p_j sum_k s_k, and then through cap and scale.
            grad = logits.softmax(-1).mul_(-s.sum(-1, keepdim=True)).scatter_add_(1, i, s)
            grad = grad.mul_(g[:, None]) if slope is None else grad.mul_(g[:, None]).mul_(slope)
            if to_bias is not None:
                to_bias += grad.sum(0)
            grad = grad.to(h.dtype)
            into.copy_(grad @ weight)
            if to_weight is not None:
                to_weight += grad.T @ h
        return (
            to_hidden,
            None if to_weight is None else to_weight.to(weight.dtype),
            None if to_bias is None else to_bias.to(weight.dtype),
            None, None, None, None, None,
        )  # fmt: skip


def _tiles(rows: int, *columns: Tensor) -> Any:
    if len(columns[0]) == 0:
        return iter(())
    return zip(*(column.split(rows) for column in columns), strict=True)


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """The float32 logits of a tile, and their derivative by W h + b; None: 1."""
    raw = F.linear(hidden, weight, bias)
    if scale != 1.0:
        raw = raw * scale
    if softcap is None:
        return raw.float(), None if scale == 1.0 else raw.new_full((), scale, dtype=torch.float32)
    bent = torch.tanh(raw / softcap)
    return (bent * softcap).float(), (1 - bent.float().square()) * scale
