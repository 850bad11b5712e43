"""What editing asks of a prior, whatever stands behind it.

Three things stand behind it today or soon: a model (`Prior`), the decisions of one in a cache
(`CachedPrior`), and a model with another tokenizer than the trainee's. Editing, and the collator
around it, ask for nothing but what is listed here.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..head.candidates import Candidates
from ..head.logprob import Scores
from ..policy import EditPolicy
from ..tokens.token_batch import TokenBatch
from .swap import PreparedSwap

T = TypeVar("T")


class Predictions(Protocol):
    """What a prior predicts at n tokens of one batch.

    The pass of the model that it rests on is queued, and need not be finished.
    """

    @property
    def device(self) -> torch.device:
        """Where scores and draws are computed."""
        ...

    def score(self, policy: EditPolicy, *, exact: bool = False) -> Scores:
        """Log P of the observed tokens, exact wherever a decision of the policy can turn on it.

        The host waits for the device once, here.

        Args:
            policy: below its lowest cut, log P may stay a bound.
            exact: whether all of log P must be exact.

        Returns:
            Of n tokens.
        """
        ...

    def exact_logprob(self, at: Tensor) -> Tensor:
        """Log P of some observed tokens: (S,) int64 places on the host -> (S,) float32, nats."""
        ...

    def draw(
        self, policy: EditPolicy, scores: Scores, selected: Tensor, uniforms: Tensor
    ) -> Tensor:
        """Resample the selected tokens; one uniform decides each.

        Args:
            policy: sampler, temperature, `exclude_original`, `protect_special`.
            scores: what `score` gave.
            selected: (n,) bool on `device`.
            uniforms: (n,) float64 in [0, 1), on the host.

        Returns:
            (n,) int64 on `device`: the tokens, resampled where they are selected.
        """
        ...

    def candidates(self, policy: EditPolicy, at: Tensor) -> Iterator[Candidates]:
        """Among what the tokens at some places are resampled: what a cache keeps of them.

        Args:
            policy: as for `draw`.
            at: (m,) int64, on the host, ascending.

        Yields:
            The candidates of a few of them after the other; together of all m.
        """
        ...


class EditingPrior(Protocol):
    """A frozen model that scores a trainee's tokens, and draws others in their place.

    All ids are the trainee's. `is_prior` tells whether a thing has all of this.

    Attributes:
        generation: how often its weights were swapped; 0 is what it was made from.
        tokenizer: of the trainee and of the ids here; None: not known.
        special_ids: ids that stand for no text.
        template_sequences: the runs of ids that the chat template writes.
    """

    generation: int
    tokenizer: Any
    special_ids: set[int]
    template_sequences: list[list[int]]

    # Facts.

    @property
    def device(self) -> torch.device:
        """Where documents are scored."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids that can be scored: input_ids must lie in [0, vocab_size)."""
        ...

    @property
    def max_length(self) -> int | None:
        """The longest document that can be scored, in tokens; None: no limit."""
        ...

    @property
    def pad_id(self) -> int:
        """The id to pad rows with."""
        ...

    @property
    def fingerprint(self) -> str:
        """Tells priors apart that give other scores; with weights over ranks, a collective."""
        ...

    @property
    def description(self) -> str:
        """What it is, in a few words of Markdown, for a model card."""
        ...

    @property
    def is_sharded(self) -> bool:
        """Whether its weights are spread over ranks, so that all of them must score together."""
        ...

    # Editing one batch.

    def scorable(self, batch: TokenBatch) -> Tensor:
        """Which tokens have a probability: (M,) bool on the host, never the first of a document."""
        ...

    def predict(self, batch: TokenBatch, where: Tensor) -> Predictions:
        """Pass a batch through the model, to predict some of its tokens.

        Args:
            batch: on the host; M tokens.
            where: (n,) int64 on the host, ascending: which of them; all are `scorable`.
        """
        ...

    def run(self, function: Callable[[], T]) -> T:
        """Call a function that uses the prior, in the surroundings that its model needs."""
        ...

    def stand_by(self) -> None:
        """Predict nothing, but take part in the passes of other ranks."""
        ...

    # Before and between batches.

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Take the trainee's tokenizer, or refuse it by a ValueError."""
        ...

    def fit(self, trainee: nn.Module, autocast_dtype: torch.dtype | None) -> None:
        """Check that the prior can edit for a trainee, and compute as it does.

        Args:
            trainee: the model that a Trainer trains.
            autocast_dtype: in which it computes (bf16 or fp16 mixed precision); None: in its own.

        Raises:
            ValueError: it can't; says why, and what to do.
        """
        ...

    def check_can_swap(self) -> None:
        """Raise a ValueError where the weights can never be swapped."""
        ...

    def prepare_swap(self, source: str | os.PathLike[str] | Mapping[str, Tensor]) -> PreparedSwap:
        """Check new weights, and change nothing; a ValueError says why they can't be taken."""
        ...

    def complete_swap(self, prepared: PreparedSwap) -> None:
        """Take over what `prepare_swap` has checked."""
        ...


_MEMBERS = sorted(
    name
    for name in {*EditingPrior.__annotations__, *vars(EditingPrior)}
    if not name.startswith("_")
)


def is_prior(thing: object) -> bool:
    """Whether a thing has all that editing asks of a prior. None of it is called.

    (`isinstance` would evaluate the properties on Python 3.10 and 3.11, among them the
    fingerprint, which reads weights and may be a collective.)

    Example:
        >>> is_prior(torch.nn.Linear(2, 2))
        False
    """
    missing = object()
    return all(inspect.getattr_static(thing, name, missing) is not missing for name in _MEMBERS)
