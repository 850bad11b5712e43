"""A pass of the prior's trunk, and whether its rows may hold several documents."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..tokens.documents import find_documents
from ..transfer import send
from .families import find_trunk
from .passes import plan_passes

logger = logging.getLogger("toedit_collate")

# How much states may differ by rounding, as a share of the largest.
_TOLERANCE = 0.02


def hidden_states(
    trunk: Any, arguments: Mapping[str, Tensor | int], device: torch.device
) -> Tensor:
    """The last hidden states of a trunk: (rows, tokens, D)."""
    there = {
        name: send(value, device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    # use_cache=False: a cache would cost memory, and hides document borders from the mask code of
    # transformers.
    return trunk(**there, use_cache=False, return_dict=True)[0]


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
