"""Identity: what the decisions of a cache were made with."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...policy import EditPolicy
from ...tokens.protection import num_ids

FORMAT = 3  # of the stored arrays and keys

# Fields of a policy that concern draws, but no decision.
_OF_DRAWS = ("seed", "redraw", "target")

_LAST: weakref.WeakKeyDictionary[Any, tuple[Any, Identity]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What decisions were made with, and what a run needs to use them without the prior.

    Attributes:
        prior: its fingerprint.
        policy: its record, without the fields that only concern draws (`decision_record`).
        tokenizer: hash of its vocabulary; "": there was none.
        tokenizer_size: number of its tokens.
        vocab_size: of the prior, padding included.
        max_length: the longest document in tokens; None: no limit.
        pad_id: the id to pad rows with.
        special_ids: ids that are never edited or drawn if the policy protects them.
        template_patterns: texts that the chat template writes (`ChatPatterns`).
        template_tails: texts that it writes at the end of a conversation.
    """

    prior: str
    policy: dict[str, Any]
    tokenizer: str
    tokenizer_size: int
    vocab_size: int
    max_length: int | None
    pad_id: int
    special_ids: tuple[int, ...]
    template_patterns: tuple[str, ...]
    template_tails: tuple[str, ...]

    @classmethod
    def of(cls, prior: Any, policy: EditPolicy) -> Identity:
        """The identity of a prior with a policy, kept for the next call.

        A ValueError is raised for a `CachedPrior` with decisions of another policy.
        """
        if hasattr(prior, "identity_for"):  # a CachedPrior
            return prior.identity_for(policy)
        tokenizer = prior.tokenizer
        size = 0 if tokenizer is None else len(tokenizer)
        protection = prior.protection
        fingerprint = prior.fingerprint_for(policy)
        now = (fingerprint, policy, tokenizer, size, protection, prior.vocab_size)
        last = _LAST.get(prior)
        if last is not None and last[0] == now:
            return last[1]
        identity = cls(
            prior=fingerprint,
            policy=decision_record(policy),
            tokenizer=tokenizer_hash(tokenizer),
            tokenizer_size=num_ids(tokenizer),
            vocab_size=prior.vocab_size,
            max_length=prior.max_length,
            pad_id=prior.pad_id,
            special_ids=tuple(sorted(protection.special_ids)),
            template_patterns=tuple(p for one, _ in protection.templates for p in one.patterns),
            template_tails=tuple(t for one, _ in protection.templates for t in one.tails),
        )
        _LAST[prior] = (now, identity)
        return identity

    @cached_property
    def digest(self) -> str:
        """The name of the decisions' folder, a hash of all that decides, apart from the keys."""
        decides = [FORMAT, self.prior, self.policy, self.tokenizer, self.special_ids]
        text = json.dumps(decides, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def decision_record(policy: EditPolicy) -> dict[str, Any]:
    """The record of a policy without the fields that only concern draws."""
    # With several draws for a label, the draws themselves are kept, so the seed decides, too.
    left_out = _OF_DRAWS if policy.num_draws == 1 else ("redraw", "target")
    record = {name: value for name, value in policy.record().items() if name not in left_out}
    return json.loads(json.dumps(record))


def describe_difference(there: dict[str, Any], now: dict[str, Any]) -> str:
    """The fields in which two records of policies differ, or ""."""
    names = sorted(name for name in {*there, *now} if there.get(name) != now.get(name))
    return ", ".join(
        f"{name}={json.dumps(there.get(name))}, now {json.dumps(now.get(name))}" for name in names
    )


def find_identity(
    held: Sequence[Identity], where: str, policy: EditPolicy | None, prior: str | None
) -> Identity:
    """The one identity of `held` with a policy and prior, for `DecisionCache.prior`."""
    if not held:
        raise ValueError(f"{where} holds no decisions; fill it with `toedit apply --cache`")
    name = prior or ""
    found = [one for one in held if one.prior.startswith(name) or one.digest.startswith(name)]
    if policy is not None and found:
        now = decision_record(policy)
        different = "; ".join(describe_difference(one.policy, now) for one in found)
        found = [one for one in found if one.policy == now]
        if not found:
            raise ValueError(
                f"{where} was filled with another policy ({different}); pass the same policy, or "
                "fill it with this one"
            )
    listed = ", ".join(f"{one.digest} (prior {one.prior})" for one in found or held)
    if not found:
        raise ValueError(f"{where} holds no prior {prior!r}, but {listed}")
    if len(found) > 1:
        raise ValueError(
            f"{where} holds the decisions of several: {listed}; pass the policy, and prior= with "
            "the beginning of one of these names"
        )
    return found[0]


def tokenizer_hash(tokenizer: Any, size: int | None = None) -> str:
    """A hash of a tokenizer's vocabulary, of ids below `size`: 32 hex digits; "" for None."""
    if tokenizer is None:
        return ""
    vocabulary = ((i, token) for token, i in tokenizer.get_vocab().items())
    chosen = sorted(pair for pair in vocabulary if size is None or pair[0] < size)
    return hashlib.sha256(json.dumps(chosen, default=repr).encode()).hexdigest()[:32]
