"""The edit as one would write it with transformers alone: the definition, over all positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...policy import EditPolicy


@torch.no_grad()
def plain_edit(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    policy: EditPolicy,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 with the (B, T, V) logits, and candidates at every position.

    Args:
        model: the prior.
        input_ids: (B, T) int64, on its device.
        attention_mask: (B, T), 1 at tokens; padding on the right.
        labels: (B, T) int64, -100 where a token must stay.
        policy: its threshold, `top_k` and temperature; region "above".
        generator: of the draws.

    Returns:
        The edited tokens, (B, T) int64, and which were selected, (B, T) bool.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    probabilities = logits[:, :-1].float().softmax(-1)
    observed = input_ids[:, 1:]
    p = probabilities.gather(-1, observed.unsqueeze(-1)).squeeze(-1)
    weights, candidates = probabilities.topk(policy.top_k, dim=-1)
    if policy.temperature != 1:
        weights = weights ** (1 / policy.temperature)
    drawn = torch.multinomial(weights.flatten(0, 1), 1, generator=generator)
    resampled = candidates.flatten(0, 1).gather(-1, drawn).view_as(observed)
    editable = (labels[:, 1:] != -100) & (attention_mask[:, 1:] == 1)
    selected = torch.zeros_like(input_ids, dtype=torch.bool)
    selected[:, 1:] = editable & (p >= policy.threshold)
    edited = input_ids.clone()
    edited[:, 1:] = torch.where(selected[:, 1:], resampled, observed)
    return edited, selected


@torch.no_grad()
def soft_targets_loss(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> Tensor:
    """What distillation by dense soft targets takes of the prior: KL(prior || trainee), a number.

    The trainee's own logits are not part of it: the prior's, turned round, stand for them.

    Args:
        model: the prior.
        input_ids: (B, T) int64, on its device.
        attention_mask: (B, T), 1 at tokens; padding on the right.
        labels: (B, T) int64, -100 where a token has no loss.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    wanted = (labels[:, 1:] != -100) & (attention_mask[:, 1:] == 1)
    logits = logits[:, :-1][wanted].float()
    trainee = logits.flip(-1).log_softmax(-1)
    prior = logits.log_softmax(-1)
    return F.kl_div(trainee, prior, reduction="batchmean", log_target=True)


def plain_bytes(B: int, T: int, vocab_size: int, dtype: torch.dtype) -> int:
    """The memory that `plain_edit` takes, about: logits, as float32 too, and their softmax."""
    return B * T * vocab_size * (dtype.itemsize + 4 + 4)
