"""DecisionCache: a bounded store of decisions, in memory or in a folder that runs share."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ragged import Array
from ..write_behind import WriteBehind
from .decisions import Decisions
from .folder import IdentityFolder, list_identities
from .identity import Identity
from .known import KnownDecisions

if TYPE_CHECKING:
    from ...policy import EditPolicy
    from .prior import CachedPrior

logger = logging.getLogger("toedit_collate")

# What was added is written as a segment when it takes so many bytes, or after five minutes.
SEGMENT_BYTES = 2**24
# A job that only fills a cache waits for so many: of a corpus of 1 T tokens, with 2 to 6 TB of
# decisions, it makes some 10,000 to 20,000 files instead of hundreds of thousands.
FILLED_SEGMENT_BYTES = 2**28


class DecisionCache(WriteBehind):
    """What a frozen prior decided about documents, so that later epochs need no pass of it.

    It holds, for each document, which of its tokens are selected or dropped, and the candidates
    for each selected one; the draw is made anew in each epoch. With a path, it is a folder with a
    sub-folder for each prior, policy and tokenizer, of safetensors files that are mapped, not read.
    Any number of processes may write to it, each its own files, and each can read all.

    Args:
        path: of the folder, made when something is written; None: keep it in memory.
        max_bytes: once this process knows so many bytes, it admits nothing more.
        fill_only: read nothing of what is in the folder, and write few, large files: for one of
            many processes that go through different documents once. A document that two of them
            decide is in it twice, which changes nothing.

    Raises:
        NotADirectoryError: `path` is a file.
        ValueError: `max_bytes` is not a positive whole number; `fill_only` without a path.

    Example:
        >>> import tempfile, torch
        >>> from toedit_collate import EditPolicy, Prior, edit_tokens
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=2,
        ... )
        >>> prior, input_ids = Prior(LlamaForCausalLM(config)), torch.tensor([[5, 6, 7, 8]])
        >>> folder, policy = tempfile.TemporaryDirectory(), EditPolicy(threshold=1e-6)
        >>> with DecisionCache(folder.name) as cache:
        ...     filled = edit_tokens(prior, input_ids, policy=policy, cache=cache)
        ...     del prior  # it has decided about all documents
        ...     again = edit_tokens(cache.prior(), input_ids, policy=policy, cache=cache)
        >>> torch.equal(again.input_ids, filled.input_ids)
        True
        >>> folder.cleanup()
    """

    max_pending_seconds = 300.0

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int = 2**30,
        fill_only: bool = False,
    ) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise ValueError(
                f"max_bytes must be a positive whole number, got {max_bytes!r}; write 2**30 for "
                "one GiB"
            )
        if fill_only and path is None:
            raise ValueError("fill_only=True fills a folder: pass its path, or fill_only=False")
        self.path = None if path is None else Path(path).absolute()
        if self.path is not None and os.path.lexists(self.path) and not self.path.is_dir():
            raise NotADirectoryError(
                f"path of a decision cache must be a folder, got the file {path}"
            )
        super().__init__()
        self.max_bytes = max_bytes
        self.fill_only = fill_only
        self.identity: Identity | None = None  # with what the decisions were made that count now
        self._known: KnownDecisions | None = None
        self._folder: IdentityFolder | None = None
        self._can_write = True

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else repr(str(self.path))
        return f"DecisionCache({where}, max_bytes={self.max_bytes})"

    def __getstate__(self) -> dict[str, Any]:
        # To workers: never the decisions, which only the main process needs.
        names = ("path", "max_bytes", "fill_only", "identity")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        identity = state.pop("identity")
        self.__init__(**state)  # type: ignore[misc]
        self.identity = identity

    def open(self, identity: Identity) -> None:
        """Say which prior, policy and tokenizer decide from now on; `Identity.of` makes one.

        Those of another identity no longer count: in memory they are forgotten; in a folder they
        stay in a sub-folder of their own, until you delete it.
        """
        now = self.identity
        if now is not None and (identity is now or identity.digest == now.digest):
            return
        if now is not None:
            self._write_or_report()
        self.identity = identity
        self._known = self._folder = None

    @property
    def nbytes(self) -> int:
        """Bytes of all decisions that count now, written yet or not."""
        return self._opened().nbytes

    @property
    def num_documents(self) -> int:
        """Documents that are known; one that several processes decided counts for each."""
        return self._opened().num_documents

    @property
    def is_full(self) -> bool:
        """Whether nothing more is admitted, because of `max_bytes`."""
        known = self._opened()
        return known.was_full or known.nbytes >= self.max_bytes

    def look_up(self, keys: Array, checks: Array) -> tuple[Array, Decisions]:
        """What was decided about some documents.

        Args:
            keys: (n,) uint64, as `Decisions` has them.
            checks: (n,) uint64; a document that has another is not known.

        Returns:
            (n,) bool, which are known; and the decisions of those, in the order of `keys`. A key
            that is asked for twice is answered twice.

        Raises:
            RuntimeError: `open` was not called.
            DamagedCacheError: a file does not hold what was written to it; names it.
        """
        known = self._opened()
        assert self.identity is not None
        return known.look_up(keys, checks, self.identity.vocab_size)

    def add(self, decisions: Decisions) -> None:
        """Keep decisions; documents that are known are left out.

        Raises:
            RuntimeError: `open` was not called.
        """
        known = self._opened()
        self._notice_fork()
        known.add(decisions)
        is_late = self.path is not None and not self.fill_only and self._is_late()
        enough = FILLED_SEGMENT_BYTES if self.fill_only else SEGMENT_BYTES
        if is_late or known.pending_bytes >= enough:
            self._write_or_report()

    def refresh(self) -> None:
        """Read what other processes have written, unless this one only fills.

        Raises:
            RuntimeError: `open` was not called.
            DamagedCacheError: a file can't be used; names it.
        """
        known = self._opened()
        if self._folder is not None and not self.fill_only:
            known.hold(self._folder.read_new())

    def flush(self) -> None:
        """Write what was not written yet; in memory there is nothing to write.

        Raises:
            OSError: it can't be written; the decisions stay in memory.
        """
        self._notice_fork()
        self._count_from_now()
        if self._known is not None:
            self._known.settle(None if self._folder is None else self._folder.write)

    def prior(self, policy: EditPolicy | None = None, prior: str | None = None) -> CachedPrior:
        """A stand-in for the prior, for a run whose documents are all in the cache.

        Args:
            policy: with which the cache was filled; None: there is one only.
            prior: of several, the one whose fingerprint, or sub-folder, begins so.

        Raises:
            ValueError: the cache has no such decisions, or those of several priors.
        """
        from .prior import CachedPrior, find_identity

        held = [] if self.identity is None else [self.identity]
        if self.path is not None:
            self.flush()
            held = list_identities(self.path)
        return CachedPrior(find_identity(held, repr(self), policy, prior))

    def _opened(self) -> KnownDecisions:
        if self.identity is None:
            raise RuntimeError("open(identity) comes before decisions are looked up or added")
        if self._known is None:
            if self.path is not None:
                self._folder = IdentityFolder(self.path, self.identity)
            held = [] if self._folder is None or self.fill_only else self._folder.read_new()
            self._known = KnownDecisions(self.max_bytes, held)
        return self._known

    def _has_pending(self) -> bool:
        known = self._known
        return self.path is not None and known is not None and known.pending_bytes > 0

    def _leave_to_parent(self) -> None:
        if self._known is not None:
            self._known.settle()
        if self._folder is not None:
            self._folder.claim()

    def _write_or_report(self) -> None:
        if self._can_write:
            super()._write_or_report()

    def _report(self, error: Exception) -> None:
        # What can't be written is no reason to end a training run.
        self._can_write = False
        logger.warning(
            "the decision cache %s can't be written (%s); this run keeps it in memory",
            self.path,
            error,
        )
