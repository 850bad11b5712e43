"""The loss of a step and its gradients, worked out in one pass over small parts of the logits.

`F.cross_entropy` on all of them gives the same (the tests compare them), and takes twice the time
on a CPU: with models as small as a study's, the vocabulary projection is most of the work.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TOKENS_AT_ONCE = 256  # logits that a CPU's cache can hold


def backward(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    kl_weight: float = 0.0,
    kl_beta: float = 0.0,
    draws: Tensor | None = None,
    prior_hidden: Tensor | None = None,
    prior_head: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> float:
    """Compute the mean loss and propagate it back through `hidden` and `head`.

    The loss is (1 - w) cross-entropy + w divergence, w being `kl_weight`, over tokens that have a
    label. With q the prior's probabilities, p the trainee's, b = `kl_beta` and m = b q + (1 - b) p,
    the divergence is b KL(q || m) + (1 - b) KL(p || m), and at its ends KL(q || p) for b = 0 and
    KL(p || q) for b = 1 ("On-Policy Distillation of Language Models", Eq. 1; as TRL has it).

    Args:
        hidden: (B, T, H), of the trainee's backbone; its gradient goes on from there.
        head: (V, H), the trainee's vocabulary projection.
        labels: (B, T) int64, of the same places as the inputs; -100: no loss.
        label_smoothing: as in `torch.nn.functional.cross_entropy`.
        kl_weight: w.
        kl_beta: b.
        draws: (B, T, K, 2) integers: ids and counts of labels that are made of many draws; `labels`
            then only say where there is a loss. None: each label is one id.
        prior_hidden: (B, T, H'), of the prior's backbone; needed where w is not 0.
        prior_head: (V, H').
        dtype: of the matrix products, as `fast_dtype` has it; all else is in float32.

    Returns:
        The mean loss, nats.
    """
    target = labels[:, 1:]
    known = target != -100
    count = max(int(known.sum()), 1)
    flat = hidden[:, :-1][known]
    drawn = target.new_ones(*target.shape, 1, 2) if draws is None else draws[:, 1:]
    ids, counts = drawn[known].long().unbind(-1)
    if draws is None:
        ids = target[known].unsqueeze(-1)
    shares = counts / counts.sum(-1, keepdim=True)
    gradient = torch.empty_like(flat, dtype=dtype)
    gradient_of_head = torch.zeros_like(head) if head.requires_grad else None
    soft = None
    if kl_weight and prior_hidden is not None and prior_head is not None:
        soft = prior_hidden[:, :-1][known].split(_TOKENS_AT_ONCE)
        prior_head = prior_head.to(dtype)
    total = 0.0
    with torch.no_grad():
        weight = head.to(dtype)
        pieces = zip(
            flat.to(dtype).split(_TOKENS_AT_ONCE),
            ids.split(_TOKENS_AT_ONCE),
            shares.split(_TOKENS_AT_ONCE),
            gradient.split(_TOKENS_AT_ONCE),
            strict=True,
        )
        for place, (states, chosen, share, into) in enumerate(pieces):
            logits = (states @ weight.T).float()
            every = logits.logsumexp(-1, keepdim=True)
            log_p = logits.sub_(every)
            # The target distribution is (1 - w) (smoothed label) + w (prior); for each of its
            # parts the gradient of the logits is the softmax minus it.
            hard = (1 - kl_weight) * (1 - label_smoothing)
            even = (1 - kl_weight) * label_smoothing
            total -= hard * (share * log_p.gather(1, chosen)).sum().item()
            if even:
                total -= even * log_p.mean(-1).sum().item()
            if soft is not None and prior_head is not None:
                p = log_p.exp()
                log_q = (soft[place].to(dtype) @ prior_head.T).float().log_softmax(-1)
                loss, slopes = _divergence(log_q, log_p, p, kl_beta)
                total += kl_weight * loss
                p.mul_(1 - kl_weight).add_(slopes, alpha=kl_weight)
            else:
                p = log_p.exp_()
            p.scatter_add_(1, chosen, -hard * share)
            if even:
                p.sub_(even / p.shape[1])
            slope = p.div_(count).to(dtype)
            into.copy_(slope @ weight)
            if gradient_of_head is not None:
                gradient_of_head += slope.T @ states
    flat.backward(gradient.to(flat.dtype))
    if gradient_of_head is not None:
        head.grad = gradient_of_head if head.grad is None else head.grad + gradient_of_head
    return total / count


def _divergence(log_q: Tensor, log_p: Tensor, p: Tensor, beta: float) -> tuple[float, Tensor]:
    """The summed divergence of p from q, and its slope in the logits of p, (N, V)."""
    q = log_q.exp()
    if beta == 0:
        return (q * (log_q - log_p)).sum().item(), p - q
    if beta == 1:
        return _reverse(log_q, log_p, p)
    log_m = torch.logaddexp(log_q + math.log(beta), log_p + math.log1p(-beta))
    loss, slopes = _reverse(log_m, log_p, p)
    loss = beta * (q * (log_q - log_m)).sum().item() + (1 - beta) * loss
    return loss, slopes.mul_(1 - beta)


def _reverse(log_m: Tensor, log_p: Tensor, p: Tensor) -> tuple[float, Tensor]:
    """The summed KL(p || m), and its slope in the logits of p were m fixed, (N, V)."""
    each = p * (log_p - log_m)
    mean = each.sum(-1, keepdim=True)
    return mean.sum().item(), each.sub_(p * mean)
