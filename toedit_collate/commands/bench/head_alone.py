"""The part `head`: log P of the observed tokens from given hidden states, without the trunk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...head import kernels
from ...head.logprob import exact_logprob, score_observed
from ...policy import EditPolicy
from ..measuring.inputs import Inputs
from ..measuring.machine import available_bytes
from ..measuring.timing import Quartiles, compare
from .libraries import installed_libraries
from .states import scored_states
from .table import Column, Row, Section

_EARLY = "early reject"
_OURS = f"tiles, {_EARLY} (ours)"
_SECONDS = 10.0
_TILE_ELEMENTS = 2**24


def measure_head(inputs: Inputs, policy: EditPolicy, *, pairs: int) -> Section:
    """Time several ways to the same numbers, and say how far each is from float32."""
    B, T = inputs.B, inputs.T
    hidden, ids = scored_states(inputs, policy, most=B * (T - 1))
    ways = _ways(inputs, policy, hidden, ids)
    times = compare(
        {name: _timed(way) for name, way in ways.items()},
        inputs.device,
        pairs=pairs,
        seconds=_SECONDS,
    )
    truth = _in_float32(inputs, hidden, ids)
    section = Section(
        "head",
        f"The head alone: log P of {len(ids):,} tokens from their states / time of ours",
        [
            Column("ratio", "{ratio:.2f}"),
            Column("quartiles", "{low:.2f} - {high:.2f}"),
            Column("ms", "{ms:.2f}"),
            Column("off by", "{off_by:.2g}"),
        ],
        notes=[
            "Off by: largest difference of log P (nats) from float32; with early reject, where P "
            "reaches the threshold. 16-bit logits, where they are stored, are rounded to 1/256 of "
            "their size."
        ],
    )
    cut = math.log(policy.threshold)
    for name, seconds in times.seconds.items():
        quartiles = Quartiles.of(times.ratios(name, _OURS))
        logprob = ways[name]().float()
        difference = (logprob - truth).abs()
        if _EARLY in name:  # elsewhere, these are bounds
            difference = difference[truth >= cut]
        figures: dict[str, Any] = {
            "ratio": quartiles.median,
            "low": quartiles.low,
            "high": quartiles.high,
            "ms": times.milliseconds(name),
            "all_ms": [1000 * s for s in seconds],
            "off_by": float(difference.max()) if len(difference) else None,
        }
        section.rows.append(Row(name, figures))
    section.rows += [Row(name, text="out of memory") for name in times.out_of_memory]
    return section


def _timed(way: Callable[[], Tensor]) -> Callable[[int], Tensor]:
    def run(number: int) -> Tensor:
        with torch.no_grad():
            return way()

    return run


@torch.no_grad()
def _ways(
    inputs: Inputs, policy: EditPolicy, hidden: Tensor, ids: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """Ways to log P, by name."""
    head, cut = inputs.prior.head, policy.lowest_cut
    competitors = inputs.prior.likely_competitors(hidden)
    ways: dict[str, Callable[[], Tensor]] = {
        _OURS: lambda: (
            score_observed(head, hidden, ids, lowest_cut=cut, competitors=competitors).logprob
        ),
        "tiles, whole vocabulary": lambda: exact_logprob(head, hidden, ids),
    }
    if len(ids) * head.vocab_size * 8 < available_bytes(hidden.device):
        ways["all logits, log_softmax"] = lambda: _at_once(head.logits(hidden), ids)
    if head.weight is None:
        return ways
    weight = head.weight
    if kernels.is_available(hidden.device):
        ways[f"Triton kernel, {_EARLY}"] = lambda: (
            score_observed(
                head, hidden, ids, lowest_cut=cut, competitors=competitors, with_kernel=True
            ).logprob
        )
        ways["Triton kernel, whole vocabulary"] = lambda: exact_logprob(
            head, hidden, ids, with_kernel=True
        )
    if head.bias is None and head.scale == 1.0 and head.softcap is None:
        for name, logprob in installed_libraries(hidden.device).items():
            ways[name] = _of_library(logprob, hidden, weight, ids)
    return ways


def _of_library(
    logprob: Callable[[Tensor, Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor, ids: Tensor
) -> Callable[[], Tensor]:
    return lambda: logprob(hidden, weight.detach(), ids)


def _at_once(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def _in_float32(inputs: Inputs, hidden: Tensor, ids: Tensor) -> Tensor:
    """Log P with float32 products and sums: (n,) float32."""
    head = inputs.prior.head
    if head.weight is not None:
        bias = None if head.bias is None else head.bias.float()
        head = dataclasses.replace(head, weight=head.weight.float(), bias=bias)
    rows = max(1, _TILE_ELEMENTS // head.vocab_size)
    pairs = zip(hidden.split(rows), ids.split(rows), strict=True)
    return torch.cat([_at_once(head.logits(h), i) for h, i in pairs])
