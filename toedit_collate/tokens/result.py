"""EditResult: the outcome of editing a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class EditResult:
    """What `edit_tokens` did to a batch of B rows of T tokens.

    With `drop_below` or `drop_above`, rows lose tokens: `input_ids`, `labels`, `attention_mask` and
    `position_ids` then are (B, T') with T' <= T. `selected`, `changed`, `dropped` and `scored`
    refer to the batch as given.

    Attributes:
        input_ids: (B, T) int64, the edited tokens; with the target "labels", as given.
        labels: as given, with the new token where a token changed and its label was not -100; with
            the target "inputs", as given. None if none were given.
        attention_mask: as given, or of the shortened rows.
        position_ids: as given, or of the shortened rows.
        selected: (B, T) bool, tokens in the policy's region, which were resampled.
        changed: (B, T) bool, selected tokens whose resample is another token.
        dropped: (B, T) bool, tokens removed by `drop_below` or `drop_above`.
        scored: (B, T) bool, tokens to which the policy was applied.
        tokens: (B, T') int64, the edited tokens, whether inputs or labels carry them.
        source: (B, T') int64, the column in the given row of each token of `input_ids`, -1 at
            padding; None where no token was removed.
        logprob: None, or (B, T) float32: log P(x_i | x_<i) in nats at every token but the first of
            each document; NaN there and at padding.
        draws: None, or with `num_draws` K > 1 (B, T, K, 2) int32: the different ids drawn for each
            label, and their counts, which add up to K. Then `labels` are as given, and `tokens` and
            `changed` follow the most frequent draw. A label without draws is its own only id.
        sample_logprob: (S,) float32, exact log P in nats of some scored tokens (`num_sampled`).

    Example:
        >>> from toedit_collate.tokens.token_batch import TokenBatch
        >>> batch = TokenBatch.of(torch.tensor([[5, 6, 7]]), None, None, None)
        >>> removed = torch.tensor([False, False, True])
        >>> result = batch.revised(torch.tensor([5, 9, 7]), removed, pad_id=0)
        >>> result.input_ids, result.changed
        (tensor([[5, 9]]), tensor([[False,  True, False]]))
    """

    input_ids: Tensor
    labels: Tensor | None
    attention_mask: Tensor | None
    position_ids: Tensor | None
    selected: Tensor
    changed: Tensor
    dropped: Tensor
    scored: Tensor
    tokens: Tensor
    source: Tensor | None
    logprob: Tensor | None
    sample_logprob: Tensor
    draws: Tensor | None = None


def count_draws(drawn: Tensor) -> Tensor:
    """Count the different ids among K draws: (n, K) int64 -> (n, K, 2) int64.

    Each pair is an id, ascending, and its count. Unused places are at the end, with the count 0.

    Example:
        >>> count_draws(torch.tensor([[5, 3, 5]])).tolist()
        [[[3, 1], [5, 2], [0, 0]]]
    """
    ordered = drawn.sort(-1).values
    is_new = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0))
    place = is_new.cumsum(-1)
    ids = torch.zeros_like(drawn).scatter_(-1, place, ordered)
    counts = torch.zeros_like(drawn).scatter_add_(-1, place, torch.ones_like(drawn))
    return torch.stack([ids, counts], -1)


def most_drawn(counted: Tensor) -> Tensor:
    """The most frequent draw, (n, K, 2) from `count_draws` -> (n,) int64; of equals the lowest id.

    Example:
        >>> most_drawn(count_draws(torch.tensor([[5, 3, 5], [7, 2, 9]]))).tolist()
        [5, 2]
    """
    ids, counts = counted.unbind(-1)
    # Ids ascend, so the smallest place among equal counts is that of the lowest id.
    rank = counts * counts.shape[1] - torch.arange(counts.shape[1], device=counts.device)
    return ids.gather(-1, rank.argmax(-1, keepdim=True)).squeeze(-1)
