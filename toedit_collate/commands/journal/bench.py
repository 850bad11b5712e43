"""`toedit journal bench`: what a journal costs, in bytes and in time, on this machine."""

from __future__ import annotations

import torch
from torch import Tensor

from ...config.priors import open_prior
from ...data import examples, open_data
from ...editing.edit import edit_tokens
from ...errors import UnusableError
from ...policy import EditPolicy
from ...prior.prior import Prior
from ..measuring.journal import (
    BATCH_SIZE,
    LENGTHS,
    SHARE,
    JournalShare,
    JournalSize,
    measure_share,
    measure_size,
)

ROWS = 8, 512  # of a batch for the prior
NUM_BATCHES = 41


def bench(num_tokens: int, prior: str | None, data: str | None) -> None:
    """Print bytes, lookups, and the journal's share of the edit pass of a prior.

    Args:
        num_tokens: of the synthetic documents.
        prior: path or name of a model; None: measure without one.
        data: text for it.

    Raises:
        UnusableError: an argument can't be used.
    """
    if (prior is None) != (data is None):
        raise UnusableError("--prior and --data belong together: text for the prior; give both")
    real = None if prior is None or data is None else _open_batches(prior, data)
    print(f"{num_tokens:,} tokens, {SHARE:.1%} of them changed; random keys, skewed ids")
    print("tokens/document  bytes/document  bytes/change  MB for 10^9 tokens  lookups/s")
    for length in LENGTHS:
        print(_size_line(measure_size(num_tokens, length)), flush=True)
    print(
        "(bytes/change beyond the 8 of each document's key; lookups in batches of "
        f"{BATCH_SIZE} documents)"
    )
    if real is None:
        return
    own, batches = real
    edit_tokens(own, batches.pop())  # warms up
    for name, policy in (
        ("paper", EditPolicy.paper()),
        ("reference_code", EditPolicy.reference_code()),
    ):
        B, T = batches[0].shape
        print(f"edit pass of {B} x {T} tokens, {name}: "
              f"{_share_line(measure_share(own, batches, policy))}")  # fmt: skip


def _size_line(size: JournalSize) -> str:
    return (
        f"{size.length:>15,}{size.bytes_per_document:>16.1f}{size.bytes_per_change:>14.1f}"
        f"{size.megabytes_per_billion:>20.1f}{size.lookups_per_second:>11,.0f}"
    )


def _share_line(share: JournalShare) -> str:
    extra = share.extra
    return (
        f"{share.plain_ms:.1f} ms; with a journal {extra.median:+.2%} (median of "
        f"{share.num_pairs} pairs; quartiles {extra.low:+.2%}, {extra.high:+.2%}); "
        f"replayed {share.replayed_ms:.1f} ms"
    )


def _open_batches(name: str, source: str) -> tuple[Prior, list[Tensor]]:
    """A prior, and batches of text for it."""
    data = open_data(source)
    prior = open_prior(name, needs_tokenizer=False)
    B, T = ROWS
    wanted = (NUM_BATCHES + 1) * B * T
    ids: list[int] = []
    for example in examples(data, prior.tokenizer, vocab_size=prior.vocab_size):
        ids += example.ids
        if len(ids) >= wanted:
            break
    if len(ids) < wanted:
        raise data.error(f"holds {len(ids):,} tokens, {wanted:,} are needed")
    return prior, list(torch.tensor(ids[:wanted]).view(-1, B, T))
