"""CachedPrior: stands in for a prior whose decisions are all in a cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ...policy import EditPolicy
from ...prior.base import BasePrior
from ...tokens.token_batch import TokenBatch
from .identity import Identity, decision_record, tokenizer_hash

_FILL = (
    "run `toedit apply --cache` with the prior, the same tokenized data and the same policy, or "
    "pass the prior itself"
)


class CachedPrior(BasePrior):
    """Stands in for a prior whose decisions are all in a `DecisionCache`: there is no model.

    `DecisionCache.prior` makes one. A document that is not in the cache is an error.

    Args:
        identity: with what the decisions in the cache were made.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.special_ids = set(identity.special_ids)
        self.template_sequences = [list(run) for run in identity.template_sequences]

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Compare `tokenizer` with that of the prior, whose special tokens and template count.

        Tokens behind the last one of the prior's tokenizer (a padding token that was added, say)
        do no harm.

        Raises:
            ValueError: it is another tokenizer.
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

    def identity_for(self, policy: EditPolicy) -> Identity:
        """The identity, if the decisions were made with this policy.

        Raises:
            ValueError: they were made with another; names what differs.
        """
        now = decision_record(policy)
        different = _difference(self.identity.policy, now)
        if different:
            raise ValueError(
                f"the decision cache was filled with another policy: {different}; pass the same "
                "policy (its seed and redraw may differ), or fill the cache with this one"
            )
        return self.identity

    def __repr__(self) -> str:
        return f"CachedPrior({self.identity.prior}, vocab_size={self.vocab_size})"

    @property
    def device(self) -> torch.device:
        """Where documents are edited."""
        return torch.device("cpu")

    @property
    def vocab_size(self) -> int:
        """Number of ids that the prior gave a probability to; padding included."""
        return self.identity.vocab_size

    @property
    def max_length(self) -> int | None:
        """The longest document that the prior could score, in tokens; None: no limit."""
        return self.identity.max_length

    @property
    def pad_id(self) -> int:
        """The id to pad rows with."""
        return self.identity.pad_id

    @property
    def fingerprint(self) -> str:
        """Of the prior that filled the cache."""
        return self.identity.prior

    @property
    def description(self) -> str:
        """What it is, for a model card."""
        return f"the decisions of prior `{self.identity.prior}`, from a cache"

    def predict(self, batch: TokenBatch, where: Tensor) -> NoReturn:
        """Refuse to score tokens.

        Raises:
            ValueError: always; it says how many documents are not in the cache.
        """
        missing = int(batch.documents.document[where].unique().numel())
        raise ValueError(
            f"{missing} of the batch's {batch.documents.num_documents} documents "
            f"{'is' if missing == 1 else 'are'} not in the decision cache, and there is no prior "
            f"to score with; {_FILL}"
        )

    def check_can_swap(self) -> NoReturn:
        """Refuse new weights.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "refresh swaps the prior's weights, but a prior from a decision cache can't be "
            "swapped: it has none; load a prior with Prior.from_pretrained, or leave refresh out"
        )


def find_identity(
    held: Sequence[Identity], where: str, policy: EditPolicy | None, prior: str | None
) -> Identity:
    """The one identity of those in a cache that is meant.

    Args:
        held: all of them.
        where: what to call the cache.
        policy: of the one that is meant; None: any.
        prior: how its fingerprint or digest begins; None: any.

    Raises:
        ValueError: there is none, or several.
    """
    if not held:
        raise ValueError(f"{where} holds no decisions; fill it with `toedit apply --cache`")
    found = [
        one for one in held if prior is None or any(
            name.startswith(prior) for name in (one.prior, one.digest)
        )
    ]  # fmt: skip
    if not found:
        raise ValueError(f"{where} holds no prior {prior!r}, but {_listed(held)}")
    if policy is not None:
        of_policy = [one for one in found if one.policy == decision_record(policy)]
        if not of_policy:
            now = decision_record(policy)
            differences = (f"{one.digest}: {_difference(one.policy, now)}" for one in found)
            raise ValueError(
                f"{where} was filled with another policy ({'; '.join(differences)}); pass the "
                "same policy, or fill it with this one"
            )
        found = of_policy
    if len(found) > 1:
        raise ValueError(
            f"{where} holds the decisions of several: {_listed(found)}; pass the policy, and "
            "prior= with the beginning of one of these names"
        )
    return found[0]


def _listed(identities: Sequence[Identity]) -> str:
    return ", ".join(f"{one.digest} (prior {one.prior})" for one in identities)


def _difference(there: dict[str, Any], now: dict[str, Any]) -> str:
    names = sorted(name for name in {*there, *now} if there.get(name) != now.get(name))
    return ", ".join(
        f"{name}={json.dumps(there.get(name))}, now {json.dumps(now.get(name))}" for name in names
    )
