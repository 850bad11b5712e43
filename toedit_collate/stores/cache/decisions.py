"""Decisions: what a prior and a policy decide about documents before the draws."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ragged import Array, narrowed, ranges
from ..segments import DamagedFileError, read_segment, write_segment
from .identity import Identity

_KIND = "toedit decisions, 3"
_NAME = re.compile(r"rank-\d+\.[0-9a-f]+\.safetensors")

# Each array has one row for ...
_ROWS = {
    "keys": "document", "checks": "document", "counts": "document", "num_unscored": "document",
    "position": "token", "num_candidates": "token", "id_bytes": "candidate",
    "weights": "candidate", "unscored": "unscored",
}  # fmt: skip


@dataclass(frozen=True)
class Decisions:
    """Decisions about n documents: which tokens to edit, and the candidates to draw from.

    A frozen prior decides the same in every epoch; only the draws differ. *Decided* tokens are
    selected or dropped. The arrays hold one document after another: d decided tokens, their c
    candidates, u tokens that the prior can't score. `of` stores each array in the smallest type
    that holds its values exactly. With 8 candidates of a 16-bit model, they take 18 bytes a
    document and 43 bytes a decided token.

    Attributes:
        keys: (n,) uint64, of each document's content and of which of its tokens may be edited.
        checks: (n,) uint64, another 64 bits of the same, to notice equal keys of two documents.
        counts: (n,) number of decided tokens, often 0.
        num_unscored: (n,) number of tokens that can't be scored.
        position: (d,) place of each decided token in its document, ascending.
        num_candidates: (d,) number of candidates of each; 0: the token is dropped.
        id_bytes: (c, 2 to 4) uint8, the lowest bytes of the candidates' ids, which ascend for each
            token.
        weights: (c,) of the candidates. A floating type: their logits before the temperature. An
            integer type: how often each was drawn.
        unscored: (u,) place of each token that may be edited but can't be scored. Only priors with
            another tokenizer have such tokens after the first.
    """

    keys: Array
    checks: Array
    counts: Array
    num_unscored: Array
    position: Array
    num_candidates: Array
    id_bytes: Array
    weights: Tensor
    unscored: Array

    @classmethod
    def of(
        cls, *, keys: Array, checks: Array, counts: Array, position: Array, num_candidates: Array,
        ids: Array, weights: Tensor, num_unscored: Array, unscored: Array,
    ) -> Decisions:  # fmt: skip
        """Make decisions of arrays of any integer types; `weights` are float32 or int64."""
        num_bytes = max(2, (int(ids.max(initial=0)).bit_length() + 7) // 8)
        return cls(
            keys=keys,
            checks=checks,
            counts=narrowed(counts),
            num_unscored=narrowed(num_unscored),
            position=narrowed(position),
            num_candidates=narrowed(num_candidates),
            id_bytes=_as_bytes(ids, num_bytes),
            weights=_narrowed_weights(weights),
            unscored=narrowed(unscored),
        )

    @classmethod
    def empty(cls) -> Decisions:
        """Decisions about no documents."""
        none = np.zeros(0, np.int64)
        keys = none.astype(np.uint64)
        return cls.of(
            keys=keys, checks=keys, counts=none, num_unscored=none, position=none,
            num_candidates=none, ids=none, weights=torch.zeros(0), unscored=none,
        )  # fmt: skip

    @classmethod
    def concatenate(cls, parts: Sequence[Decisions]) -> Decisions:
        """The documents of all parts, one part after another."""
        parts = [part for part in parts if len(part)] or [cls.empty()]
        if len(parts) == 1:
            return parts[0]
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in _ROWS.keys() - {"id_bytes", "weights"}
        }
        num_bytes = max(part.id_bytes.shape[1] for part in parts)
        arrays["id_bytes"] = np.concatenate([_as_bytes(part.ids, num_bytes) for part in parts])
        arrays["weights"] = torch.cat([part.weights for part in parts])
        return cls(**arrays)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def ids(self) -> Array:
        """(c,) int64, of the candidates."""
        if self.id_bytes.shape[1] == 2:
            return self.id_bytes.view("<u2").reshape(-1).astype(np.int64)
        wide = np.zeros((len(self.id_bytes), 4), np.uint8)
        wide[:, : self.id_bytes.shape[1]] = self.id_bytes
        return wide.view("<u4").reshape(-1).astype(np.int64)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(getattr(self, name).nbytes for name in _ROWS)

    @cached_property
    def _ends(self) -> dict[str, Array]:
        """Where the rows of each document end, after a 0: (n + 1,) int64."""
        per_candidate = np.append(0, np.cumsum(self.num_candidates, dtype=np.int64))
        token = np.append(0, np.cumsum(self.counts, dtype=np.int64))
        unscored = np.append(0, np.cumsum(self.num_unscored, dtype=np.int64))
        return {"token": token, "candidate": per_candidate[token], "unscored": unscored}

    def select(self, documents: Array) -> Decisions:
        """Some of the documents, by their (m,) numbers in [0, n)."""
        rows = {"document": documents}
        for of, ends in self._ends.items():
            rows[of] = ranges(ends[documents], ends[documents + 1] - ends[documents])
        arrays = {
            name: getattr(self, name).take(rows[of], axis=0)
            for name, of in _ROWS.items() if name != "weights"
        }  # fmt: skip
        weights = self.weights.index_select(0, torch.from_numpy(rows["candidate"]))
        return Decisions(**arrays, weights=weights)

    def write(self, path: Path, identity: Identity) -> None:
        """Write a segment."""
        arrays = {name: getattr(self, name) for name in _ROWS}
        write_segment(path, _KIND, arrays, {"identity": dataclasses.asdict(identity)})

    @classmethod
    def read(cls, path: Path) -> tuple[Identity, Decisions]:
        """Open a segment and check all of it. The arrays stay on the disk until they are used."""
        try:
            facts, tensors = read_segment(path, _KIND)
            weights = tensors.pop("weights")
            decisions = cls(**{n: t.numpy() for n, t in tensors.items()}, weights=weights)
            record = facts["identity"]
            for name in ("special_ids", "template_patterns", "template_tails"):
                record[name] = tuple(record[name])
            identity = Identity(**record)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFileError(
                f"segment {path} of the decision cache is damaged ({error}); delete it, and its "
                "documents are decided again"
            ) from error
        if identity.digest != path.parent.name:
            raise DamagedFileError(
                f"segment {path} of the decision cache was made with another prior, policy or "
                f"tokenizer ({identity.digest}) than its folder; move it back, or delete it"
            )
        return identity, decisions


def list_segments(folder: Path) -> list[str]:
    """The names of the finished segments in a folder, sorted."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if _NAME.fullmatch(entry.name))


def list_identities(path: Path) -> list[Identity]:
    """The identities in a cache's folder; a DamagedFileError if one can't be read."""
    folders = sorted(path.iterdir()) if path.is_dir() else []
    return [Decisions.read(one / names[0])[0] for one in folders if (names := list_segments(one))]


def _as_bytes(ids: Array, num_bytes: int) -> Array:
    return ids.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :num_bytes].copy()


def _narrowed_weights(weights: Tensor) -> Tensor:
    """The weights in the smallest type that holds every bit, 16 bits for a 16-bit model."""
    if not weights.is_floating_point():
        return weights.to(torch.uint8 if int(weights.max()) < 256 else torch.int32)
    for dtype in (torch.bfloat16, torch.float16):
        narrow = weights.to(dtype)
        # The bits are compared, not the values, because of -0.0 and NaN.
        if torch.equal(narrow.float().view(torch.int32), weights.view(torch.int32)):
            return narrow
    return weights
