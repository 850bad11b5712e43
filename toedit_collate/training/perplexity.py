"""Held-out perplexity per token, each document on its own (Appendix C.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from transformers import Trainer

from ..distributed import all_reduce, rank, world_size
from ..editing.edit import edit_batch
from ..policy import EditPolicy
from ..prior.base import BasePrior
from ..tokens.token_batch import TokenBatch
from .collator import ToEditCollator

_SCORE_ONLY = EditPolicy(region="none")


def held_out_perplexity(
    prior: BasePrior, batches: Iterable[dict[str, Any]], *, over_ranks: bool = False
) -> float:
    """Exact perplexity per token, each document on its own; NaN without tokens.

    Source: arXiv:2412.14689, Appendix C.2.

    First tokens and tokens with the label -100 do not count. With `over_ranks`, each rank has other
    batches, and all ranks must call this.
    """
    nll, count = 0.0, 0.0
    for batch in batches:
        source = TokenBatch.collated(batch, tokenizer=prior.tokenizer)
        result = edit_batch(prior, _SCORE_ONLY, source, epoch=0, generation=0, return_logprob=True)
        assert result.logprob is not None
        counts = ~result.logprob.isnan()
        if result.labels is not None:
            counts &= result.labels != -100
        nll -= float(result.logprob[counts].double().sum())
        count += float(counts.sum())
    if over_ranks:
        nll, count = all_reduce([nll, count])
    return math.exp(nll / count) if count else math.nan


def perplexity_of(trainer: Trainer, prior: BasePrior, dataset: str | None = None) -> float | None:
    """Held-out perplexity of a prior on a Trainer's `eval_dataset`; None without one. Collective.

    If `eval_dataset` is a dict, `dataset` is the name of one.
    """
    if trainer.eval_dataset is None:
        return None
    if isinstance(trainer.eval_dataset, dict) and dataset not in trainer.eval_dataset:
        raise ValueError(
            f"dataset must be one of {sorted(trainer.eval_dataset)}, which the Trainer's "
            f"eval_dataset holds, got {dataset!r}"
        )
    # The Trainer's own loader, since it drops the columns that the model does not take; but with
    # the base collator.
    collator = trainer.data_collator
    if isinstance(collator, ToEditCollator):
        trainer.data_collator = collator.base_collator  # type: ignore[assignment]
    try:
        loader: Any = trainer.get_eval_dataloader(dataset)
    finally:
        trainer.data_collator = collator
    loader = getattr(loader, "base_dataloader", loader)
    # A forward pass of a sharded prior needs all ranks, so all go through the same batches.
    together = world_size() == 1 or prior.is_sharded
    first, every = (0, 1) if together else (rank(), world_size())
    rows = range(first, len(loader.dataset), every)
    batches = DataLoader(
        Subset(loader.dataset, rows),
        batch_size=trainer.args.eval_batch_size,
        collate_fn=loader.collate_fn,
    )
    with torch.no_grad():
        return held_out_perplexity(prior, batches, over_ranks=not together)
