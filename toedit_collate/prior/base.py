"""BasePrior: what editing needs from a prior, and what all kinds of priors share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from ..head.predictions import Predictions
from ..policy import EditPolicy
from ..tokens.protection import Protection
from ..tokens.token_batch import TokenBatch

T = TypeVar("T")


class BasePrior(ABC):
    """Scores a trainee's tokens and draws replacements for them; all ids are the trainee's.

    A `Prior` has the trainee's tokenizer, an `AlignedPrior` has another one, and a `CachedPrior` is
    a decision cache without a model.

    Attributes:
        generation: number of swaps so far; 0: the original weights.
        tokenizer: of the ids; None: not known.
        protection: what its tokenizer protects; within `protecting`, also what the trainee's
            protects.
        aligner: aligns the documents of a batch in DataLoader workers; None: nothing to align.
    """

    generation: int = 0
    tokenizer: Any = None
    protection: Protection
    aligner: Any = None

    def __getstate__(self) -> NoReturn:
        """Refuse to be pickled."""
        raise TypeError(
            f"a {type(self).__name__} can't be pickled; pass the ToEditCollator to worker "
            "processes, which is pickled without its prior"
        )

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where documents are scored."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of ids that have a probability: input_ids must be in [0, vocab_size)."""

    @property
    def max_length(self) -> int | None:
        """The longest document that can be scored, in tokens; None: no limit."""
        return None

    @property
    @abstractmethod
    def pad_id(self) -> int:
        """The id to pad rows with."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Differs between priors whose scores differ; with sharded weights, a collective."""

    @property
    def added_bos(self) -> int | None:
        """The BOS that it reads before a text that was cut out of a document; None: none."""
        return None

    def fingerprint_for(self, policy: EditPolicy) -> str:
        """Its fingerprint, and what else its scores depend on with a policy."""
        bos = None if policy.context == "document" else self.added_bos
        return self.fingerprint if bos is None else f"{self.fingerprint} after {bos}"

    @property
    @abstractmethod
    def description(self) -> str:
        """What it is, in a few words of Markdown, for a model card."""

    @property
    def is_sharded(self) -> bool:
        """Whether its weights are spread over ranks, so that all ranks must score together."""
        return False

    @property
    def unaligned(self) -> BasePrior:
        """The prior that scores its own tokens: itself, unless it is aligned to a tokenizer."""
        return self

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text."""
        return self.protection.special_ids

    @contextmanager
    def protecting(self, protection: Protection) -> Iterator[None]:
        """Add the protection of another tokenizer for one edit.

        A prior may edit for several trainees, and an edit must not depend on their order.
        """
        own = self.protection
        self.protection = own | protection
        try:
            yield
        finally:
            self.protection = own

    def scorable(self, batch: TokenBatch) -> Tensor:
        """Which tokens have a probability, (M,) bool on the host: never the first of a context."""
        return batch.contexts.position > 0

    @abstractmethod
    def predict(self, batch: TokenBatch, where: Tensor) -> Predictions:
        """Run the model on a batch, to predict some of its tokens.

        `where` is (n,) int64 on the host, ascending; all of them must be `scorable`.
        """

    def run_gathered(self, function: Callable[[], T]) -> T:
        """Call a function that uses the prior, with weights that are spread over ranks gathered."""
        return function()

    def make_idle_passes(self) -> None:
        """Predict nothing, but take part in the forward passes of other ranks."""

    def take_prepared(self, documents: Mapping[bytes, Any]) -> None:
        """Use documents of the next batch that a worker has aligned; see `aligner`."""

    def take_counts(self) -> dict[str, int]:
        """Alignment counts since the last call; empty where nothing is aligned."""
        return {}

    @abstractmethod
    def set_tokenizer(self, tokenizer: Any) -> None:
        """Use the trainee's tokenizer.

        Raises:
            ValueError: it does not fit.
        """

    def aligned_to(self, tokenizer: Any) -> BasePrior:
        """A prior for a trainee with another tokenizer.

        Raises:
            ValueError: this kind of prior can't be aligned.
        """
        raise ValueError(
            f"{self!r} can't be aligned to another tokenizer; align the prior that fills the cache"
        )

    def prepare_for(self, trainee: nn.Module, autocast_dtype: torch.dtype | None) -> None:
        """Check that the prior can edit for a trainee, and compute in its precision.

        `autocast_dtype` is that of the trainer's mixed precision; None: there is none.

        Raises:
            ValueError: it can't.
        """

    def compile(self, **options: Any) -> None:
        """Compile the model's trunk, if there is a model; see `Prior.compile`."""

    def check_can_swap(self) -> None:
        """Raise a ValueError if the weights can never be swapped."""

    def swap(self, source: str | os.PathLike[str] | Mapping[str, Tensor]) -> None:
        """Take over the weights of a checkpoint; see `Prior.swap`."""
        self.check_can_swap()
        raise NotImplementedError
