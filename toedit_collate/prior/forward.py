"""Passes of the prior's trunk: from the documents of a batch to their hidden states."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from ..tokens.documents import Documents, find_documents
from ..tokens.passes import PASS_COST, Pass, plan_passes
from ..transfer import send
from .families import find_trunk
from .rope import length_class, rope_as_new
from .sharding import Rendezvous

logger = logging.getLogger("toedit_collate")

# How much states may differ by rounding, as a share of the largest.
_TOLERANCE = 0.02


class TrunkPasses:
    """How a trunk goes through batches.

    Args:
        config: of the model.

    Attributes:
        can_pack: whether documents may stand behind one another in a row; None: not tried yet.
    """

    def __init__(self, config: Any) -> None:
        self.can_pack: bool | None = None
        self._length_class = length_class(config)

    def states(
        self,
        lm: Any,
        documents: Documents,
        tokens: Tensor,
        where: Tensor,
        needed: Tensor,
        device: torch.device,
        ranks: Rendezvous | None,
    ) -> Tensor:
        """The hidden states from which the head predicts some tokens; queued, not waited for.

        Args:
            lm: the model, in the surroundings in which it scores.
            documents: of the batch; M tokens, N documents.
            tokens: (M,) int64, on the host.
            where: (n,) int64, on the host, ascending: which tokens are to be predicted.
            needed: (N,) bool, the documents with such tokens.
            device: for the trunk's input.
            ranks: that must make as many passes, where weights are spread over them.

        Returns:
            (n, D), on the device of the trunk's output.

        Raises:
            torch.OutOfMemoryError: a single document is too much for the GPU.
        """
        if self.can_pack is None:
            # The trial runs forward passes; under FSDP2 every rank would have to join, so sharded
            # priors never pack.
            self.can_pack = ranks is None and can_pack(lm, device)
        kind = "sharded" if ranks is not None else "cpu" if device.type == "cpu" else "gpu"

        def plan(chosen: Tensor) -> list[Pass]:
            return plan_passes(
                documents, tokens, chosen, packed=bool(self.can_pack), pass_cost=PASS_COST[kind],
                length_class=self._length_class,
            )  # fmt: skip

        place = torch.full((len(tokens),), -1)  # in `where`
        place[where] = torch.arange(len(where))
        trunk = find_trunk(lm)
        queue = deque(plan(needed))
        # Asked before the passes: each of them is a meeting of the ranks, too.
        num_idle = 0 if ranks is None else ranks.idle_passes(len(queue))
        pieces, places = [], []
        while queue:
            one = queue.popleft()
            hidden = None
            numbers = documents.document[one.members].unique()
            try:
                hidden = self._run(trunk, one, device)
            except torch.cuda.OutOfMemoryError as error:
                if ranks is not None or len(numbers) == 1:
                    raise _out_of_memory(one, error) from error
            if hidden is None:  # here the error, which holds activations, is gone
                for half in reversed(numbers.tensor_split(2)):
                    queue.extendleft(plan(torch.zeros_like(needed).index_fill_(0, half, True)))
                torch.cuda.empty_cache()
                continue
            here = (place[one.members] >= 0).nonzero().squeeze(-1)
            # The state of the token before predicts the token. A model that is spread over
            # several devices gives it on its last one.
            before = send(one.cells[here] - 1, hidden.device)
            # detach: for gradient checkpointing, PEFT's hook marks embeddings as requiring
            # gradients even under no_grad.
            pieces.append(hidden.detach().flatten(0, 1)[before])
            places.append(place[one.members[here]])
        self.make_idle_passes(lm, num_idle, device)
        if len(pieces) == 1:
            return pieces[0]
        states = torch.cat(pieces)
        return states[send(torch.cat(places).argsort(), states.device)]

    def make_idle_passes(self, lm: Any, count: int, device: torch.device) -> None:
        """Take part in the passes that other ranks make beyond ours."""
        row = torch.zeros(1, 1, dtype=torch.int64, device=device)
        for _ in range(count):
            find_trunk(lm)(input_ids=row, use_cache=False)

    def _run(self, trunk: Any, one: Pass, device: torch.device) -> Tensor:
        if self._length_class is None:
            return hidden_states(trunk, one.arguments, device)
        with rope_as_new(trunk):
            return hidden_states(trunk, one.arguments, device)


def _out_of_memory(one: Pass, error: Exception) -> Exception:
    return torch.cuda.OutOfMemoryError(
        f"the prior's pass over {len(one.members)} tokens ran out of GPU memory, and can't be "
        "split further; shorten rows (max_length=...), load the prior with quantization='8bit', or "
        f"use a decision cache ({error})"
    )


def hidden_states(
    trunk: Any, arguments: Mapping[str, Tensor | int], device: torch.device
) -> Tensor:
    """The last hidden states of a trunk: (rows, tokens, D).

    Raises:
        RuntimeError: it gives none, since an old torch compiled it.
    """
    there = {
        name: send(value, device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    # use_cache=False: a cache would cost memory, and hides document borders from the mask code of
    # transformers.
    with nullcontext() if "position_ids" in there else _one_document_per_row():
        output = trunk(**there, use_cache=False, return_dict=True)
    if len(output) == 0:
        raise RuntimeError(
            "the prior's trunk, compiled, gives an empty output: torch 2.6 does this to models of "
            f"transformers 5 (here is torch {torch.__version__}); leave prior.compile() "
            "(torch_compile) out, or take a newer torch"
        )
    return output[0]


_REPLACED = threading.RLock()


@contextmanager
def _one_document_per_row() -> Iterator[None]:
    """Tell transformers what it would find out itself: no row holds several documents.

    To find out, it reads a number from the GPU, so the host waits. In a compiled trunk it does not
    find out at all, makes a mask of all pairs of tokens, and so leaves FlashAttention unused.

    No argument says so: a function of transformers is replaced during the pass. Passes of several
    threads therefore wait for one another, so that the function is always put back.
    """
    name = "find_packed_sequence_indices"
    with _REPLACED:
        find = getattr(masking_utils, name, None)
        if find is None:
            yield
            return
        setattr(masking_utils, name, _find_none)
        try:
            yield
        finally:
            setattr(masking_utils, name, find)


def _find_none(position_ids: Tensor) -> None:
    """In place of `masking_utils.find_packed_sequence_indices`."""


def can_pack(lm: Any, device: torch.device) -> bool:
    """Whether documents may stand behind one another in a row without seeing each other.

    Only attention that takes the borders of documents gains by it: FlashAttention's functions for
    rows of various lengths. A model may mix tokens in other ways, too, so it is tried out.

    Args:
        lm: a causal language model in eval mode.
        device: for its input.
    """
    if "flash" not in (getattr(lm.config, "_attn_implementation", None) or ""):
        return False
    if leaks_in_packed_rows(lm, device):
        logger.warning(
            "documents that are packed for the prior would see each other; it scores padded rows "
            "instead, which takes longer where lengths differ"
        )
        return False
    return True


def leaks_in_packed_rows(lm: Any, device: torch.device) -> bool:
    """Whether the second document of a packed row has other states than alone."""
    trunk = find_trunk(lm)
    ids = torch.arange(1, 33) % lm.config.get_text_config().vocab_size
    both = find_documents(ids.unsqueeze(0), None, (torch.arange(32) % 16).unsqueeze(0))

    def second(needed: list[bool], packed: bool) -> Tensor:
        (one,) = plan_passes(both, ids, torch.tensor(needed), packed=packed, pass_cost=0)
        return hidden_states(trunk, one.arguments, device)[0, -16:].float()

    together, alone = second([True, True], packed=True), second([False, True], packed=False)
    return bool((together - alone).abs().max() > _TOLERANCE * alone.abs().max())
