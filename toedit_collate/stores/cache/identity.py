"""Identity: what the decisions of a cache were made with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...policy import EditPolicy
from ...tokens.vocabulary import num_ids

FORMAT = 2  # of what is kept, and of the keys that it is kept by

_TYPES: dict[str, Any] = {
    "prior": str, "policy": dict, "tokenizer": str, "tokenizer_size": int, "vocab_size": int,
    "max_length": int | None, "pad_id": int, "special_ids": list, "template_sequences": list,
}  # fmt: skip

# Fields of a policy that concern draws, and what carries them, but no decision.
_OF_DRAWS = ("seed", "redraw", "target")

_LAST: weakref.WeakKeyDictionary[Any, tuple[Any, Identity]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What decisions were made with, and what a run needs to use them without the prior.

    Attributes:
        prior: its fingerprint.
        policy: its record, without what concerns draws alone (`decision_record`).
        tokenizer: hash of its vocabulary (`tokenizer_hash`); "" where there was none.
        tokenizer_size: number of its tokens; 0 where there was none.
        vocab_size: of the prior, padding included.
        max_length: the longest document in tokens; None: no limit.
        pad_id: the id to pad rows with.
        special_ids: that are never edited or drawn where the policy protects them.
        template_sequences: the runs of ids that the chat template writes.
    """

    prior: str
    policy: dict[str, Any]
    tokenizer: str
    tokenizer_size: int
    vocab_size: int
    max_length: int | None
    pad_id: int
    special_ids: tuple[int, ...]
    template_sequences: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, prior: Any, policy: EditPolicy) -> Identity:
        """The identity of a prior with a policy; cheap where both are those of the last call.

        Raises:
            ValueError: `prior` is a `CachedPrior`, whose decisions were made with another policy.
        """
        if hasattr(prior, "identity_for"):  # a CachedPrior
            return prior.identity_for(policy)
        tokenizer = prior.tokenizer
        size = 0 if tokenizer is None else len(tokenizer)
        special_ids = tuple(sorted(prior.special_ids))
        now = (prior.fingerprint, policy, tokenizer, size, special_ids, prior.vocab_size)
        last = _LAST.get(prior)
        if last is not None and last[0] == now:
            return last[1]
        identity = cls(
            prior=prior.fingerprint,
            policy=decision_record(policy),
            tokenizer=tokenizer_hash(tokenizer),
            tokenizer_size=num_ids(tokenizer),
            vocab_size=prior.vocab_size,
            max_length=prior.max_length,
            pad_id=prior.pad_id,
            special_ids=special_ids,
            template_sequences=tuple(tuple(run) for run in prior.template_sequences),
        )
        _LAST[prior] = (now, identity)
        return identity

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Identity:
        """The identity that `as_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is none, or was changed.
        """
        values = {name: record[name] for name in _TYPES}
        if record["checksum"] != _checksum(values):
            raise ValueError("its checksum is wrong")
        for name, value in values.items():
            if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
                raise TypeError(f"{name} is {value!r}")
        values["special_ids"] = tuple(values["special_ids"])
        values["template_sequences"] = tuple(map(tuple, values["template_sequences"]))
        for ids in (values["special_ids"], *values["template_sequences"]):
            if not all(type(i) is int for i in ids):
                raise TypeError(f"{ids} are no token ids")
        return cls(**values)

    def as_json(self) -> dict[str, Any]:
        """All of it, for `identity.json`."""
        values = dataclasses.asdict(self)
        return {"format": FORMAT, **values, "checksum": _checksum(values)}

    @cached_property
    def digest(self) -> str:
        """Hex digits that name the decisions' folder.

        Of what decides: the format, the prior, the policy, the vocabulary, and the special tokens,
        which may be left out of the candidates. What else is protected is part of the documents'
        keys.
        """
        decides = [FORMAT, self.prior, self.policy, self.tokenizer, self.special_ids]
        text = json.dumps(decides, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _checksum(values: dict[str, Any]) -> str:
    """Of all that is kept: also of what a run without the prior needs, and decides nothing."""
    text = json.dumps([FORMAT, values], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def decision_record(policy: EditPolicy) -> dict[str, Any]:
    """What of a policy decides: its record without `seed`, `redraw` and `target`."""
    record = {name: value for name, value in policy.record().items() if name not in _OF_DRAWS}
    return json.loads(json.dumps(record))


def tokenizer_hash(tokenizer: Any, size: int | None = None) -> str:
    """A hash of a tokenizer's vocabulary: which id stands for which token.

    Args:
        tokenizer: of transformers, or None.
        size: of the tokens with a lower id than this alone; None: of all.

    Returns:
        32 hex digits; "" for None.
    """
    if tokenizer is None:
        return ""
    vocabulary = ((i, token) for token, i in tokenizer.get_vocab().items())
    chosen = sorted(pair for pair in vocabulary if size is None or pair[0] < size)
    return hashlib.sha256(json.dumps(chosen, default=repr).encode()).hexdigest()[:32]
