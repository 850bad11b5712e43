"""The part `host`: what the host itself does for a batch, beside the device's passes."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from ...editing.edit import edit_tokens
from ...editing.editable import find_editable
from ...policy import EditPolicy
from ...stores.cache import DecisionCache
from ...tokens.checks import check_documents
from ...tokens.draws import Draws
from ...tokens.passes import PASS_COST, plan_passes
from ...tokens.token_batch import TokenBatch
from ..measuring.inputs import Inputs
from .table import Column, Row, Section

SIZES = ((1, 256), (1, 512), (2, 256), (4, 512))
DOCUMENT_TOKENS = 128  # of packed rows
_ROUNDS, _WARM_UPS = 31, 3


def measure_host(inputs: Inputs, policy: EditPolicy) -> Section:
    """Time the host's work for small batches, on which a GPU would have to wait.

    Args:
        inputs: their prior.
        policy: of the edit.
    """
    section = Section(
        "host",
        "Time of the host's own work for a batch",
        [Column("ms", "{ms:.2f}"), Column("ms, all known to a cache", "{cached_ms:.2f}")],
        notes=[
            "Checks, documents, keys, draws, passes to plan and the result; no backbone, no "
            "lm_head. "
            f"Medians of {_ROUNDS} rounds, in time of this process.",
        ],
    )
    longest = inputs.prior.max_length or max(T for _, T in SIZES)
    sizes = [(B, T) for B, T in SIZES if longest >= T]
    for (B, T), packed, labelled in itertools.product(sizes, (False, True), (False, True)):
        tensors = _batch(B, T, inputs.prior.vocab_size, packed=packed, labelled=labelled)
        cache, draws = DecisionCache(), Draws(policy.seed, 0, 0)
        again = partial(edit_tokens, inputs.prior, policy=policy, cache=cache, **tensors)
        again()
        figures = {
            "ms": _milliseconds(partial(_host_work, inputs, policy, tensors, draws)),
            "cached_ms": _milliseconds(again),
        }
        extras = [", packed"] * packed + [", labels"] * labelled
        section.rows.append(Row(f"{B} x {T}{''.join(extras)}", figures))
    return section


def _batch(B: int, T: int, vocab_size: int, *, packed: bool, labelled: bool) -> dict[str, Any]:
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, vocab_size, (B, T)))
    batch = {"input_ids": ids}
    if packed:
        batch["position_ids"] = torch.arange(T).expand(B, T) % DOCUMENT_TOKENS
    if labelled:
        batch["labels"] = torch.where(torch.arange(T) < T // 4, -100, ids)
    return batch


def _host_work(inputs: Inputs, policy: EditPolicy, tensors: Any, draws: Draws) -> None:
    prior = inputs.prior
    given: dict[str, Any] = {
        "attention_mask": None,
        "position_ids": None,
        "labels": None,
        **tensors,
    }
    batch = TokenBatch.of(**given)
    documents = batch.documents
    check_documents(
        documents, batch.tokens, vocab_size=prior.vocab_size, max_length=prior.max_length
    )
    editable = find_editable(prior, policy, batch)
    where = editable.nonzero().squeeze(-1)
    needed = torch.ones(documents.num_documents, dtype=torch.bool)
    plan_passes(documents, batch.tokens, needed, packed=False, pass_cost=PASS_COST["gpu"])
    batch.uniforms(where, draws)
    batch.result(
        where=where,
        new_tokens=batch.tokens[where],
        selected=torch.zeros_like(where, dtype=torch.bool),
        scored=editable,
        sample_logprob=torch.zeros(0),
        pad_id=0,
    )


def _milliseconds(function: Callable[[], object]) -> float:
    times = []
    for number in range(_WARM_UPS + _ROUNDS):
        started = time.process_time()
        function()
        if number >= _WARM_UPS:
            times.append(1000 * (time.process_time() - started))
    return statistics.median(times)
