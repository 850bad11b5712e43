"""The part `agreement`: which decisions rounding turns, against the definition in float32."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...editing.edit import EditResult, edit_tokens
from ...policy import EditPolicy
from ...prior.prior import Prior
from ..measuring.inputs import Inputs
from ..measuring.machine import available_bytes, gib
from .table import Column, Row, Section

_TILE_ELEMENTS = 2**24  # of logits
_COLUMNS = [
    Column("selected", "{selected:,}"),
    Column("share", "{share:.3%}"),
    Column("turned", "{num_turned:,}"),
    Column("of all", "{turned_share:.4%}"),
    Column("median |P - threshold|", "{median:.2g}"),
    Column("largest", "{largest:.2g}"),
]
Decide = Callable[[int], EditResult]
"""Edits the batch of a number."""


def measure_agreement(
    inputs: Inputs, policy: EditPolicy, *, name: str | None, quantizations: Sequence[str] = ()
) -> Section:
    """Count the decisions that differ from the definition, and how near the threshold they were.

    Args:
        inputs: with prepared states, only the head's rounding is compared.
        policy: its threshold, region "above".
        name: of the prior, for quantised copies of it.
        quantizations: as `Prior.from_pretrained` has them.
    """
    section = Section(
        "agreement",
        "Decisions that differ from the definition: the same weights in float32, softmax over all",
        _COLUMNS,
        notes=["|P - threshold|: in float32, of the decisions that differ."],
    )
    needed = 4 * sum(p.numel() for p in inputs.prior.model.parameters())
    if inputs.states is not None:  # the head alone
        needed = 4 * inputs.prior.vocab_size * inputs.states.shape[-1]
    if needed > available_bytes(inputs.device):
        section.notes = [
            f"Left out: the weights in float32 take {gib(needed)}, and "
            f"{gib(available_bytes(inputs.device))} are free."
        ]
        return section

    def decide(prior: Prior) -> Decide:
        return lambda number: edit_tokens(prior, **inputs.batch(number), policy=policy)

    with inputs.in_place():
        decided = [decide(inputs.prior)(n) for n in range(len(inputs.batches))]
    p = _definition(inputs, [result.scored for result in decided])
    truth = p >= policy.threshold
    section.rows.append(
        Row("definition", {"selected": int(truth.sum()), "share": float(truth.double().mean())})
    )
    section.figures["num_scored"] = len(p)
    section.notes.insert(0, f"{len(p):,} tokens were scored.")
    if inputs.states is not None:
        section.notes.append("States are prepared ones, so only the head's rounding counts.")
    dtype = str(getattr(inputs.prior.model, "dtype", "")).removeprefix("torch.")
    section.rows.append(Row(dtype, _compare(decided, p, truth, policy.threshold)))
    for quantization in quantizations:
        assert name is not None
        try:
            other = Prior.from_pretrained(
                name, quantization=quantization, dtype=torch.bfloat16, device=inputs.device
            )
            decided = [decide(other)(n) for n in range(len(inputs.batches))]
        except Exception as error:  # of many kinds: a library or a GPU that is not there
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            section.rows.append(Row(quantization, text=f"can't be had here: {reason}"))
            continue
        section.rows.append(Row(quantization, _compare(decided, p, truth, policy.threshold)))
        del other
    return section


def _compare(
    decided: list[EditResult], p: Tensor, truth: Tensor, threshold: float
) -> dict[str, Any]:
    """Decisions against the definition's: (n,) probabilities and (n,) bool."""
    selected = torch.cat([result.selected[result.scored] for result in decided]).cpu()
    turned = selected != truth
    distances = (p[turned] - threshold).abs().tolist()
    figures: dict[str, Any] = {
        "selected": int(selected.sum()),
        "share": float(selected.double().mean()),
        "num_turned": len(distances),
        "turned_share": len(distances) / max(len(p), 1),
    }
    if distances:
        figures |= {"median": statistics.median(distances), "largest": max(distances)}
    return figures


@torch.no_grad()
def _definition(inputs: Inputs, scored: list[Tensor]) -> Tensor:
    """P of all scored tokens in float32: (n,) float64 on the CPU."""
    if inputs.states is not None:
        weight = inputs.prior.head.weight
        assert weight is not None
        ids = inputs.on_device(0)["input_ids"]
        where = scored[0].to(ids.device)[:, 1:]
        states = inputs.states[:, :-1][where].float()
        return _softmax_of(states, weight.float(), ids[:, 1:][where])
    model: nn.Module = copy.deepcopy(inputs.prior.model).float()
    found = []
    for number, mask in enumerate(scored):
        batch = inputs.on_device(number)
        for b in range(len(mask)):  # row by row: no padding, and little memory
            where = mask[b].to(inputs.device)
            length = int(batch["attention_mask"][b].sum())
            ids = batch["input_ids"][b : b + 1, :length]
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            here = where[1:length]
            own = ids[0, 1:][here].unsqueeze(-1)
            logprob = logits[here].float().log_softmax(-1).gather(-1, own)
            found.append(logprob.squeeze(-1).double().exp().cpu())
    return torch.cat(found)


def _softmax_of(states: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    rows = max(1, _TILE_ELEMENTS // len(weight))
    found = []
    for h, i in zip(states.split(rows), ids.split(rows), strict=True):
        logprob = F.linear(h, weight).log_softmax(-1).gather(-1, i.unsqueeze(-1))
        found.append(logprob.squeeze(-1).double().exp().cpu())
    return torch.cat(found)
