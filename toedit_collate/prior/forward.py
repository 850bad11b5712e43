"""Runs the prior's trunk: from the documents of a batch to their hidden states."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import masking_utils

from ..tokens.documents import Documents, find_documents
from ..tokens.passes import PASS_COST, Pass, plan_passes
from ..transfer import send
from .families import find_trunk
from .sharding import Rendezvous

logger = logging.getLogger("toedit_collate")

# How much states may differ by rounding, as a share of the largest.
_TOLERANCE = 0.02


class TrunkPasses:
    """Runs the trunk of a model of the given `config` over batches.

    Attributes:
        can_pack: whether documents may be packed into one row; None: not tried yet.
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
        if self.can_pack is None:
            # To try it out takes forward passes. Under FSDP2 every rank would have to join, so
            # sharded priors never pack.
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
                hidden = self._run(trunk, one, device)
            except torch.cuda.OutOfMemoryError as error:
                if ranks is not None or len(numbers) == 1:
                    raise torch.cuda.OutOfMemoryError(
                        f"the prior's pass over {len(one.members)} tokens ran out of GPU memory, "
                        "and can't be split further; shorten rows (max_length=...), load the prior "
                        f"with quantization='8bit', or use a decision cache ({error})"
                    ) from error
            if hidden is None:  # here, the error and the activations that it holds are freed
                for half in reversed(numbers.tensor_split(2)):
                    queue.extendleft(plan(torch.zeros_like(needed).index_fill_(0, half, True)))
                torch.cuda.empty_cache()
                continue
            here = (place[one.members] >= 0).nonzero().squeeze(-1)
            # The state of the previous token predicts a token. Of a model on several devices, it
            # is on the last one.
            before = send(one.cells[here] - 1, hidden.device)
            # detach: PEFT's hook for gradient checkpointing makes embeddings require gradients
            # even under no_grad.
            pieces.append(hidden.detach().flatten(0, 1)[before])
            places.append(place[one.members[here]])
        self.make_idle_passes(lm, num_idle, device)
        if len(pieces) == 1:
            return pieces[0]
        states = torch.cat(pieces)
        return states[send(torch.cat(places).argsort(), states.device)]

    def make_idle_passes(self, lm: Any, count: int, device: torch.device) -> None:
        """Take part in additional passes of other ranks."""
        row = torch.zeros(1, 1, dtype=torch.int64, device=device)
        for _ in range(count):
            find_trunk(lm)(input_ids=row, use_cache=False)

    def _run(self, trunk: Any, one: Pass, device: torch.device) -> Tensor:
        with nullcontext() if self._length_class is None else rope_as_new(trunk):
            return hidden_states(trunk, one.arguments, device)


def hidden_states(
    trunk: Any, arguments: Mapping[str, Tensor | int], device: torch.device
) -> Tensor:
    """The last hidden states of a trunk: (rows, tokens, D).

    Raises:
        RuntimeError: there are none: an old torch compiled the trunk.
    """
    on_device = {
        name: send(value, device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    # use_cache=False: a cache costs memory, and hides document borders from the mask code of
    # transformers.
    with nullcontext() if "position_ids" in on_device else _one_document_per_row():
        output = trunk(**on_device, use_cache=False, return_dict=True)
    if len(output) == 0:
        raise RuntimeError(
            f"the compiled trunk of the prior returns nothing, with torch {torch.__version__}: "
            "torch 2.6 can't compile models of transformers 5; do not call prior.compile() "
            "(torch_compile), or install a newer torch"
        )
    return output[0]


_REPLACED = threading.RLock()


@contextmanager
def _one_document_per_row() -> Iterator[None]:
    """Tell transformers that no row holds several documents.

    To find this out, transformers reads a number from the GPU, so the host waits. In a compiled
    trunk it builds a mask of all pairs of tokens instead, so FlashAttention stays unused. No
    argument turns this off, so a function of transformers is replaced during the pass. Threads
    wait for one another here, so that the function is always restored.
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
    """Replaces `masking_utils.find_packed_sequence_indices`."""


def can_pack(lm: Any, device: torch.device) -> bool:
    """Whether documents may be packed into one row without seeing each other.

    Packing is faster only with FlashAttention, which takes the borders of documents. Other parts
    of a model may mix tokens, too, so this is tried out on the model `lm`.
    """
    if "flash" not in (getattr(lm.config, "_attn_implementation", None) or ""):
        return False
    if leaks_in_packed_rows(lm, device):
        logger.warning(
            "packed documents would see each other in the prior, so it scores padded rows, which "
            "takes longer where lengths differ"
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


# Rotary positions that depend on the length of a pass. With LongRoPE (Phi-3) and dynamic NTK
# scaling, transformers chooses the frequencies by the longest position of the whole pass. So a
# short document would be scored differently next to a long one. Documents share a pass only where
# the frequencies are the same for each of them.


def length_class(config: Any) -> Callable[[int], int] | None:
    """Documents share a pass only if this function of their lengths agrees; None: all may."""
    config = config.get_text_config()
    switches, grows = set(), set()
    for rope in _ropes(config):
        kind = str(rope.get("rope_type", rope.get("type", "")))
        original = (
            rope.get("original_max_position_embeddings")
            or getattr(config, "original_max_position_embeddings", None)
            or getattr(config, "max_position_embeddings", None)
        )
        if not isinstance(original, int):
            continue
        if kind == "longrope":
            switches.add(original)
        elif "dynamic" in kind:
            grows.add(original)
    if not switches and not grows:
        return None

    def class_of(length: int) -> int:
        # Beyond the original length, dynamic frequencies differ for each length.
        longest = length if any(length > original for original in grows) else 0
        return 2 * longest + sum(length > original for original in switches)

    return class_of


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """The settings of each kind of rotary positions that a model has."""
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(config, name, None)
        if not isinstance(found, dict):
            continue
        yield found
        yield from (value for value in found.values() if isinstance(value, dict))


@contextmanager
def rope_as_new(trunk: nn.Module) -> Iterator[None]:
    """Reset dynamic frequencies for the pass, and restore them afterwards.

    Transformers keeps the frequencies of the longest text so far. So a score would depend on
    earlier scores, and a shared prior would change the training.
    """
    before = []
    for module in trunk.modules():
        names = [name for name in vars(module) if name.endswith("max_seq_len_cached")]
        if not names or "dynamic" not in str(getattr(module, "rope_type", "")):
            continue
        buffers = {
            n: b for n, b in module._buffers.items() if n.endswith("inv_freq") and b is not None
        }
        values = {name: getattr(module, name) for name in (*names, "attention_scaling")}
        before.append((module, buffers, values))
        for name in names:
            setattr(module, name, getattr(module, "original_max_seq_len", values[name]))
        for name in buffers:
            prefix = name.removesuffix("inv_freq")
            original = getattr(module, f"{prefix}original_inv_freq", None)
            if not prefix.endswith("original_") and original is not None:
                module._buffers[name] = original.to(buffers[name].device)
    try:
        yield
    finally:
        for module, buffers, values in before:
            module._buffers.update(buffers)
            for name, value in values.items():
                setattr(module, name, value)
