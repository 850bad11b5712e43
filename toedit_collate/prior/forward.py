"""Runs the prior's trunk: from the documents of a batch to their hidden states."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from ..tokens.documents import Documents
from ..tokens.passes import PASS_COST, Pass, plan_passes
from ..transfer import send
from .families import find_trunk
from .sharding import Rendezvous


def run_trunk(
    lm: Any,
    documents: Documents,
    tokens: Tensor,
    where: Tensor,
    device: torch.device,
    ranks: Rendezvous | None,
) -> Tensor:
    """The hidden states from which the head predicts some tokens, without a wait.

    Args:
        lm: the model, frozen as in `FrozenModel`.
        documents: of the batch; M tokens.
        tokens: (M,) int64, on the host.
        where: (n,) int64, on the host, ascending: the tokens to predict, at least one.
        device: for the trunk's input.
        ranks: that must make as many passes, if weights are spread over ranks.

    Returns:
        (n, D), on the device of the trunk's output.

    Raises:
        torch.OutOfMemoryError: a single document is too large for the GPU.
    """
    kind = "sharded" if ranks is not None else "cpu" if device.type == "cpu" else "gpu"
    plan = partial(
        plan_passes, documents, tokens, pass_cost=PASS_COST[kind],
        length_class=length_class(lm.config),
    )  # fmt: skip

    place = torch.full((len(tokens),), -1)  # in `where`
    place[where] = torch.arange(len(where))
    trunk = find_trunk(lm)
    needed = torch.zeros(documents.num_documents, dtype=torch.bool)
    needed[documents.document[where]] = True
    queue = deque(plan(needed))
    # Before the passes, since each of them is a collective, too.
    num_idle = 0 if ranks is None else ranks.idle_passes(len(queue))
    pieces, places = [], []
    while queue:
        one = queue.popleft()
        hidden = None
        numbers = documents.document[one.members].unique()
        try:
            hidden = _hidden_states(trunk, one, device)
        except torch.cuda.OutOfMemoryError:
            if ranks is not None or len(numbers) == 1:
                raise
        if hidden is None:  # here, the error and the activations that it holds are freed
            for half in reversed(numbers.tensor_split(2)):
                queue.extendleft(plan(torch.zeros_like(needed).index_fill_(0, half, True)))
            torch.cuda.empty_cache()
            continue
        here = (place[one.members] >= 0).nonzero().squeeze(-1)
        # The state of the previous token predicts a token. Of a model on several devices, it is on
        # the last one.
        before = send(one.cells[here] - 1, hidden.device)
        # detach: PEFT's hook for gradient checkpointing makes embeddings require gradients even
        # under no_grad.
        pieces.append(hidden.detach().flatten(0, 1)[before])
        places.append(place[one.members[here]])
    make_idle_passes(lm, num_idle, device)
    if len(pieces) == 1:
        return pieces[0]
    states = torch.cat(pieces)
    return states[send(torch.cat(places).argsort(), states.device)]


def make_idle_passes(lm: Any, count: int, device: torch.device) -> None:
    """Take part in additional passes of other ranks."""
    row = torch.zeros(1, 1, dtype=torch.int64, device=device)
    for _ in range(count):
        find_trunk(lm)(input_ids=row, use_cache=False)


def _hidden_states(trunk: Any, one: Pass, device: torch.device) -> Tensor:
    """The last hidden states of a trunk: (rows, tokens, D)."""
    with _one_document_per_row():
        # use_cache=False: a cache would only take memory.
        return trunk(input_ids=send(one.input_ids, device), use_cache=False, return_dict=True)[0]


_REPLACED = threading.RLock()


@contextmanager
def _one_document_per_row() -> Iterator[None]:
    """Tell transformers that no row holds several documents.

    To find this out, transformers reads a number from the GPU, so the host waits. In a compiled
    trunk it builds a mask of all pairs of tokens instead, so FlashAttention stays unused. No
    argument turns this off, so a function of transformers is replaced during the pass. Threads
    wait for one another here, so that the function is always restored.
    """
    with _REPLACED:
        find = masking_utils.find_packed_sequence_indices
        masking_utils.find_packed_sequence_indices = lambda position_ids: None
        try:
            yield
        finally:
            masking_utils.find_packed_sequence_indices = find


def length_class(config: Any) -> Callable[[int], int] | None:
    """Documents share a pass only if this function of their lengths agrees; None: all may.

    With LongRoPE (Phi-3), transformers chooses the frequencies of rotary positions by the longest
    row of a pass. So a short document would be scored differently next to a long one.
    """
    ropes = getattr(config.get_text_config(), "rope_parameters", None) or {}
    of_layers = [rope for rope in ropes.values() if isinstance(rope, dict)]
    switches = [
        rope["original_max_position_embeddings"]
        for rope in of_layers or [ropes]
        if rope.get("rope_type") == "longrope"
    ]
    return (lambda length: sum(length > switch for switch in switches)) if switches else None
