"""CachedPrior: replaces a prior whose decisions are all in a cache."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from ...policy import EditPolicy
from ...prior.base import BasePrior
from ...tokens.chat_template import ChatPatterns
from ...tokens.protection import Protection
from ...tokens.token_batch import TokenBatch
from .identity import Identity, decision_record, describe_difference, tokenizer_hash

_FILL = (
    "run `toedit apply --cache` with the prior, the same tokenized data and the same policy, or "
    "pass the prior itself"
)


class CachedPrior(BasePrior):
    """Replaces a prior whose decisions are all in a `DecisionCache`: there is no model.

    `DecisionCache.prior` makes one. A document that is not in the cache is an error.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.set_tokenizer(None)

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Compare `tokenizer` with that of the prior, whose special tokens and template are used.

        A ValueError is raised for another tokenizer; tokens that were added to it do no harm.
        """
        size = self.identity.tokenizer_size
        if tokenizer is not None and size:
            there = tokenizer_hash(tokenizer, size)
            if there != self.identity.tokenizer:
                raise ValueError(
                    f"tokenizer differs from that of the prior which filled the decision cache: "
                    f"the hash of its first {size} tokens is {there}, not "
                    f"{self.identity.tokenizer}; pass the prior's own tokenizer, or fill the cache "
                    "with a prior that has this one"
                )
        self.tokenizer = tokenizer
        patterns = ChatPatterns(self.identity.template_patterns, self.identity.template_tails)
        templates = ((patterns, tokenizer),) if patterns.patterns else ()
        self.protection = Protection(frozenset(self.identity.special_ids), templates)

    def identity_for(self, policy: EditPolicy) -> Identity:
        """The identity; a ValueError if the decisions were made with another policy."""
        now = decision_record(policy)
        different = describe_difference(self.identity.policy, now)
        if different:
            raise ValueError(
                f"the decision cache was filled with another policy: {different}; pass the same "
                "policy (its seed and redraw may differ), or fill the cache with this one"
            )
        return self.identity

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def vocab_size(self) -> int:
        return self.identity.vocab_size

    @property
    def max_length(self) -> int | None:
        return self.identity.max_length

    @property
    def pad_id(self) -> int:
        return self.identity.pad_id

    @property
    def fingerprint(self) -> str:
        return self.identity.prior

    @property
    def description(self) -> str:
        return f"the decisions of prior `{self.identity.prior}`, from a cache"

    def predict(self, batch: TokenBatch, where: Tensor) -> NoReturn:
        """Raise a ValueError: documents are not in the cache."""
        missing = int(batch.documents.document[where].unique().numel())
        raise ValueError(
            f"{missing} of the batch's {batch.documents.num_documents} documents "
            f"{'is' if missing == 1 else 'are'} not in the decision cache, and there is no prior "
            f"to score with; {_FILL}"
        )

    def check_can_swap(self) -> NoReturn:
        """Raise a ValueError: there are no weights."""
        raise ValueError(
            "refresh swaps the prior's weights, but a prior from a decision cache can't be "
            "swapped: it has none; load a prior with Prior.from_pretrained, or leave refresh out"
        )
