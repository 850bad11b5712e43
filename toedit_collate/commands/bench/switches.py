"""The tricks of the edit pass, each of which can be switched off: the only file that knows how.

A switch swaps a name of the package's modules while it lasts. It must leave the edit as it is; the
tests check that, and that less or more is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...head import logprob as scores
from ...head import predictions
from ...head.logprob import Competitors
from ...prior.prior import Prior
from ...tokens import passes


@contextmanager
def swapped(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """While it lasts, `module.name` is `value`.

    Raises:
        AttributeError: there is no such name; then the package has changed, and a switch must.
    """
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def no_early_reject() -> Iterator[None]:
    """Every scored position is projected on to the whole vocabulary, tile by tile."""
    score_observed = predictions.score_observed

    def score_all(*args: Any, **settings: Any) -> Any:
        return score_observed(*args, **{**settings, "competitors": None})

    with swapped(predictions, "score_observed", score_all):
        yield


@contextmanager
def no_lazy_resample() -> Iterator[None]:
    """Every selected token gets its candidates."""

    def none_kept(uniforms: Tensor, *args: Any, **settings: Any) -> Tensor:
        return torch.zeros_like(uniforms, dtype=torch.bool)

    with swapped(predictions, "surely_kept", none_kept):
        yield


@contextmanager
def padding_kept() -> Iterator[None]:
    """Documents of all lengths are padded to one rectangle for the trunk."""

    def one_group(lengths: list[int], pass_cost: int) -> list[list[int]]:
        return [list(range(len(lengths)))] if lengths else []

    with swapped(passes, "group_by_length", one_group):
        yield


@contextmanager
def kernel_used(prior: Prior) -> Iterator[None]:
    """Log P by the GPU kernel."""
    before = prior.uses_kernel
    prior.early_reject.uses_kernel = True
    try:
        yield
    finally:
        prior.early_reject.uses_kernel = before


def likely_first(prior: Prior, states: Tensor, num_ids: int) -> Competitors:
    """One tile of so many ids, chosen by their probability: (n, D) hidden states."""
    with ExitStack() as stack:
        for name, value in (("ONLY_TILE_IDS", num_ids), ("ONLY_TILE_SHARE", 0.0)):
            stack.enter_context(swapped(scores, name, value))
        stack.enter_context(swapped(scores, "on_host", lambda _: False))
        competitors = scores.measure_competitors(prior.head, states)
    assert competitors is not None
    return competitors


def in_order_of_ids(like: Competitors) -> Competitors:
    """Tiles of the same sizes, of the first ids."""
    order = torch.arange(len(like.order), device=like.order.device)
    place = torch.arange(len(like.place), device=like.order.device).clamp(max=len(order))
    return Competitors(order, place, like.stops)


@contextmanager
def first_tile(prior: Prior, competitors: Competitors) -> Iterator[None]:
    """The first tile is another one."""
    before = prior.early_reject.competitors
    prior.early_reject.competitors = competitors
    try:
        yield
    finally:
        prior.early_reject.competitors = before


@contextmanager
def eager(trunk: Any) -> Iterator[None]:
    """A trunk that `Prior.compile` has compiled runs as it was."""
    compiled = getattr(trunk, "_compiled_call_impl", None)
    trunk._compiled_call_impl = None
    try:
        yield
    finally:
        trunk._compiled_call_impl = compiled


def uncompile(trunk: Any) -> None:
    """Take back `Prior.compile`."""
    trunk._compiled_call_impl = None
