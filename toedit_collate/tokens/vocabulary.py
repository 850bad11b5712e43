"""Which ids a prior may be asked for, and which it may draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .protection import Protection


def num_ids(tokenizer: Any) -> int:
    """One more than the largest id of a tokenizer; 0 for None.

    Not `len(tokenizer)`: the ids of some tokenizers have holes.
    """
    return 0 if tokenizer is None else 1 + max(tokenizer.get_vocab().values(), default=-1)


class Vocabulary:
    """The ids of a prior, by its head and its tokenizer.

    Args:
        size: V, how many ids the head gives a probability to.
        tokenizer: of the trainee and the prior, or None.

    Raises:
        TypeError: it is no tokenizer of transformers.
        ValueError: the tokenizer has more tokens than there are ids.

    Attributes:
        protection: what the tokenizer says must not be edited.
    """

    def __init__(self, size: int, tokenizer: Any = None) -> None:
        if tokenizer is not None and not hasattr(tokenizer, "all_special_ids"):
            raise TypeError(
                f"tokenizer must be a tokenizer of transformers, got {type(tokenizer).__name__}; "
                "load it with AutoTokenizer.from_pretrained(...)"
            )
        known = set() if tokenizer is None else set(tokenizer.get_vocab().values())
        # A padding token that was added to the tokenizer only does no harm.
        beyond = {i for i in known if i >= size}
        if beyond and beyond - set(tokenizer.all_special_ids):
            raise ValueError(
                f"tokenizer has {len(known)} tokens, up to id {max(known)}, but the prior's "
                f"vocabulary has only {size}; pass the tokenizer that the prior was trained with"
            )
        self.size = size
        self.tokenizer = tokenizer
        self.protection = Protection.of(tokenizer)
        self._no_text = torch.zeros(size, dtype=torch.bool)
        if tokenizer is not None:
            # Ids that no token has: padding of the vocabulary, and holes in the tokenizer.
            self._no_text[:] = True
            self._no_text[sorted(known - beyond)] = False
        self._on_device: dict[tuple[frozenset[int], torch.device], Tensor] = {}

    def forbidden(self, special_ids: frozenset[int], device: torch.device) -> Tensor:
        """The ids that must not be drawn: (m,) int64 on a device; made once for each.

        Args:
            special_ids: ids that must not be drawn, besides those that no token has.
            device: where they are wanted.
        """
        key = (special_ids, device)
        if key not in self._on_device:
            forbidden = self._no_text.clone()
            forbidden[[i for i in special_ids if i < self.size]] = True
            self._on_device[key] = forbidden.nonzero().squeeze(-1).to(device)
        return self._on_device[key]
