"""Identity: what the decisions of a cache were made with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...policy import EditPolicy
from ...tokens.protection import num_ids
from ..segments import DamagedFileError, check_is_file, write_whole

FORMAT = 3  # of the stored arrays and keys

# Fields of a policy that concern draws, but no decision.
_OF_DRAWS = ("seed", "redraw", "target")
_NOTE = "identity.json"

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

        Raises:
            ValueError: `prior` is a `CachedPrior` with decisions of another policy.
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
        """The name of the decisions' folder, a hash of all that decides.

        Which tokens are protected besides the special ones is part of the documents' keys.
        """
        decides = [FORMAT, self.prior, self.policy, self.tokenizer, self.special_ids]
        text = json.dumps(decides, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def write(self, folder: Path) -> None:
        """Write it into the decisions' folder, unless it is there."""
        note = folder / _NOTE
        if not note.exists():
            folder.mkdir(parents=True, exist_ok=True)
            values = dataclasses.asdict(self)
            content = {"format": FORMAT, **values, "checksum": _checksum(values)}
            write_whole(note, json.dumps(content, indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> Identity:
        """Read it from the decisions' folder.

        Raises:
            DamagedFileError: the file can't be read, was changed, or belongs to another folder.
        """
        note = folder / _NOTE
        try:
            check_is_file(note)
            record = json.loads(note.read_bytes())
            values = {field.name: record[field.name] for field in dataclasses.fields(cls)}
            if record["checksum"] != _checksum(values):
                raise ValueError("its checksum is wrong")
            for name in ("special_ids", "template_patterns", "template_tails"):
                values[name] = tuple(values[name])
            identity = cls(**values)
        except (KeyError, OSError, RecursionError, TypeError, ValueError) as error:
            raise DamagedFileError(
                f"{note} of the decision cache is damaged ({type(error).__name__}: {error}); "
                "delete its folder, and its documents are decided again"
            ) from error
        if identity.digest != folder.name:
            raise DamagedFileError(
                f"{note} of the decision cache belongs to another folder ({identity.digest}): it "
                "was moved, or the package has changed; delete the folder, and its documents are "
                "decided again"
            )
        return identity


def _checksum(values: dict[str, Any]) -> str:
    text = json.dumps([FORMAT, values], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def list_identities(path: Path) -> list[Identity]:
    """The identities in a cache's folder; a DamagedFileError if one can't be read."""
    if not path.is_dir():
        return []
    folders = sorted(Path(entry.path) for entry in os.scandir(path) if entry.is_dir())
    return [Identity.read(folder) for folder in folders if os.path.lexists(folder / _NOTE)]


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
    if not found:
        raise ValueError(f"{where} holds no prior {prior!r}, but {_listed(held)}")
    if policy is not None:
        now = decision_record(policy)
        of_policy = [one for one in found if one.policy == now]
        if not of_policy:
            differences = (f"{o.digest}: {describe_difference(o.policy, now)}" for o in found)
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


def tokenizer_hash(tokenizer: Any, size: int | None = None) -> str:
    """A hash of a tokenizer's vocabulary, 32 hex digits; "" for None.

    Args:
        tokenizer: of transformers, or None.
        size: leave out ids from this one on; None: leave out nothing.
    """
    if tokenizer is None:
        return ""
    vocabulary = ((i, token) for token, i in tokenizer.get_vocab().items())
    chosen = sorted(pair for pair in vocabulary if size is None or pair[0] < size)
    return hashlib.sha256(json.dumps(chosen, default=repr).encode()).hexdigest()[:32]
