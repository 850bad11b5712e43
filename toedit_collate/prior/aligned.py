"""AlignedPrior: a prior that scores and draws for a trainee with another tokenizer."""

from __future__ import annotations

import functools
import hashlib
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..head.aligned_predictions import AlignedPredictions, Chains
from ..head.groups import IdGroups
from ..policy import EditPolicy
from ..tokens.alignment.aligner import DocumentAligner
from ..tokens.alignment.batch import AlignedBatch
from ..tokens.alignment.byte_tokenizer import ByteTokenizer
from ..tokens.alignment.document import AlignedDocument, Aligner
from ..tokens.alignment.groups import Groups, first_tokens
from ..tokens.alignment.ways import ways_of
from ..tokens.checks import check_same_tokenizer
from ..tokens.protection import Protection
from ..tokens.token_batch import TokenBatch
from ..transfer import send
from .base import BasePrior
from .model_prior import ModelPrior

logger = logging.getLogger("toedit_collate")
T = TypeVar("T")

# A share of aligned tokens under this is warned about, once so many were seen.
LOW_SHARE = 0.5
_SEEN = 10_000


class AlignedPrior(BasePrior):
    """A prior for a trainee with another tokenizer.

    `Prior.aligned_to` makes one. Both tokenizers cut the same bytes. A token of the trainee that
    begins where one of the prior begins is scored: log P is a lower bound of the log-probability
    that the prior's text goes on with the bytes of the token. A chain of the prior's tokens that
    begin inside it has the product of their probabilities, but for the last one, for which the sum
    over all of the prior's ids is taken with which the trainee's own encoding gives the token. What
    such a token is resampled to is the first token of the trainee's encoding of what the prior
    draws. A token that begins inside one of the prior's is not scored.

    A lower bound selects too few tokens with `region="above"`, never a wrong one. With
    `region="below"` or `drop_below` it is the other way round: a token may be taken whose true P is
    higher. Such a policy is warned about once, unless both sides have the same tokenizer, where
    bounds are exact.

    Documents whose bytes do not agree on both sides are left alone. Special tokens of the trainee
    cut the text; where its BOS stands, the prior sees its own.

    Args:
        prior: with its tokenizer.
        tokenizer: of the trainee.

    Attributes:
        counts: of the documents and tokens seen so far (`aligned_share`).

    Raises:
        ValueError: the prior has no tokenizer, or one of the two does not stand for bytes.
    """

    def __init__(self, prior: ModelPrior, tokenizer: Any) -> None:
        if prior.tokenizer is None:
            raise ValueError(
                "the prior has no tokenizer, so it can't be aligned to another; load it with "
                "Prior.from_pretrained, or write Prior(model, tokenizer)"
            )
        trainee = ByteTokenizer(tokenizer, "trainee's")
        own = ByteTokenizer(prior.tokenizer, "prior's")
        self._prior = prior
        self.tokenizer = tokenizer
        self.generation = prior.generation
        self.protection = Protection.of(tokenizer)
        self.aligner = DocumentAligner(Aligner(trainee, own))
        first = first_tokens(trainee, own, special=self.aligner.one.special)
        self._groups = Groups.of(first, len(trainee.bytes))
        digest = hashlib.sha256(repr((trainee.bytes, own.bytes)).encode()).hexdigest()
        self._name = digest[:16]
        self._prepared: dict[bytes, AlignedDocument] = {}
        self._last: tuple[Callable[[], TokenBatch | None], AlignedBatch] | None = None
        self._last_documents: list[AlignedDocument] = []
        self._warned: set[str] = set()
        self.counts = dict.fromkeys(("documents", "left_alone", "alignable", "aligned"), 0)
        self._taken = dict(self.counts)

    def __repr__(self) -> str:
        return f"AlignedPrior({self._prior}, trainee's vocabulary {self.vocab_size})"

    @property
    def unaligned(self) -> ModelPrior:
        """The prior that it aligns, which scores its own tokens."""
        return self._prior

    @property
    def device(self) -> torch.device:
        """Where documents are scored."""
        return self._prior.device

    @property
    def vocab_size(self) -> int:
        """Number of the trainee's ids."""
        return len(self.aligner.one.trainee.bytes)

    @property
    def pad_id(self) -> int:
        """The id to pad rows with."""
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(self.tokenizer, name, None)
            if isinstance(value, int) and value >= 0:
                return value
        return 0

    @property
    def fingerprint(self) -> str:
        """That of the prior, and of the two vocabularies."""
        return f"{self._prior.fingerprint} aligned {self._name}"

    @property
    def description(self) -> str:
        """What it is, in a few words of Markdown, for a model card."""
        return f"{self._prior.description}, aligned to the tokenizer of this model"

    @property
    def is_sharded(self) -> bool:
        """Whether its weights are spread over ranks."""
        return self._prior.is_sharded

    @property
    def aligned_share(self) -> float:
        """The share of the tokens that could be scored of all that follow another one."""
        return self.counts["aligned"] / max(1, self.counts["alignable"])

    def scorable(self, batch: TokenBatch) -> Tensor:
        """Which tokens begin where one of the prior's begins, (M,) bool."""
        return torch.from_numpy(self._aligned(batch).begin > 0)

    def ways(self, batch: TokenBatch) -> np.ndarray[Any, Any]:
        """In which of `WAYS` each of the M tokens of a batch is scored: see `ways_of`."""
        self._aligned(batch)
        starts = zip(batch.documents.start.tolist(), batch.documents.lengths, strict=True)
        tokens = batch.tokens.numpy()
        found = [
            ways_of(one, tokens[start : start + length], self.aligner.one, self._prior.max_length)
            for one, (start, length) in zip(self._last_documents, starts, strict=True)
        ]
        return np.concatenate(found)

    def take_prepared(self, documents: Mapping[bytes, AlignedDocument]) -> None:
        """Take the documents of a batch that a worker has tokenized (`aligner`), for a while."""
        self._prepared = dict(documents)

    def predict(self, batch: TokenBatch, where: Tensor) -> AlignedPredictions:
        """Pass a batch through the model; see `BasePrior`."""
        aligned = self._aligned(batch)
        tokens = batch.tokens[where]
        requests = aligned.requests(where.numpy(), tokens.numpy(), self._groups)
        head = self._prior.head
        states = head.ready(
            self._prior.predictive_states(
                aligned.documents, aligned.tokens, torch.from_numpy(requests.place)
            )
        )
        device = states.device
        length = torch.from_numpy(aligned.length[where.numpy()])
        group = np.full(head.vocab_size, self.vocab_size)
        known = np.flatnonzero(self._groups.first >= 0)
        group[known] = self._groups.first[known]

        def there(values: np.ndarray[Any, Any]) -> Tensor:
            return send(torch.from_numpy(values), device)

        return AlignedPredictions(
            head=head,
            states=states,
            tokens=send(tokens, device),
            token_of=there(requests.token),
            groups=IdGroups(
                there(requests.member_row), there(requests.members), len(requests.place)
            ),
            chains=Chains(
                begin=length.cumsum(0) - length,
                length=length,
                prior_tokens=aligned.tokens[torch.from_numpy(requests.place)],
                is_bounded=torch.from_numpy(
                    np.isin((length.cumsum(0) - 1).numpy(), requests.member_row)
                ),
                first_behind=self._first_behind,
            ),
            first=there(group),
            num_ids=self.vocab_size,
            forbidden=lambda special: send(self.forbidden_ids(forbid_special=special), device),
            competitors=self._prior.likely_competitors,
            warn_about=self._warn_about,
        )

    @functools.cached_property
    def is_exact(self) -> bool:
        """Whether log P is exact, not a lower bound: both sides have the same tokenizer."""
        try:
            check_same_tokenizer(self.tokenizer, self._prior.tokenizer, self._prior.vocab_size)
        except ValueError:
            return False
        return True

    def _warn_about(self, policy: EditPolicy) -> None:
        """Warn once of a policy that takes tokens for a low P, of which only a bound is known."""
        if self.is_exact:
            return
        if policy.region == "below":
            self._warn(
                "below",
                'region="below" with a prior that is aligned to another tokenizer also takes '
                "tokens whose true P is above the threshold %s, since its P are lower bounds; "
                "with a prior that has the trainee's tokenizer they are exact",
                policy.threshold,
            )
        if policy.drop_below is not None:
            self._warn(
                "drop",
                "drop_below=%s with a prior that is aligned to another tokenizer also removes "
                "tokens whose true P is higher, since its P are lower bounds; leave drop_below "
                "out, or use a prior that has the trainee's tokenizer",
                policy.drop_below,
            )

    def forbidden_ids(self, *, forbid_special: bool) -> Tensor:
        """The ids that must not be drawn: (m,) int64 on the CPU."""
        special = self.special_ids if forbid_special else ()
        return torch.tensor(sorted(i for i in special if i < self.vocab_size), dtype=torch.int64)

    def _first_behind(self, covered: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        one = self.aligner.one
        if not covered:
            return self._first
        data = one.prior.decode(list(covered))
        assert data is not None
        ids, group = one.groups.first_behind(data)
        return torch.from_numpy(ids), torch.from_numpy(group)

    @functools.cached_property
    def _first(self) -> tuple[Tensor, Tensor]:
        ids, group = np.unique(self._groups.first, return_inverse=True)
        return torch.from_numpy(ids), torch.from_numpy(group)

    def _aligned(self, batch: TokenBatch) -> AlignedBatch:
        if self._last is not None and self._last[0]() is batch:
            return self._last[1]
        documents = self.aligner(batch.tokens.numpy(), batch.documents, self._prepared)
        aligned = AlignedBatch.of(documents, self._prior.max_length)
        self._last_documents = documents
        self._last = (weakref.ref(batch), aligned)
        self._count(batch, aligned)
        return aligned

    def _count(self, batch: TokenBatch, aligned: AlignedBatch) -> None:
        is_text = self.aligner.one.trainee.lengths[batch.tokens.numpy()] > 0
        follows = batch.documents.position.numpy() > 0
        self.counts["documents"] += batch.documents.num_documents
        self.counts["left_alone"] += aligned.num_disagreeing
        self.counts["alignable"] += int((is_text & follows).sum())
        self.counts["aligned"] += int((aligned.begin > 0).sum())
        if aligned.num_cut:
            self._warn(
                "cut",
                "a document has more tokens for the prior than its %s positions; what stands "
                "behind them is not edited: shorten rows, or use a prior with a longer context",
                self._prior.max_length,
            )
        if aligned.num_disagreeing:
            self._warn(
                "bytes",
                "the two tokenizers disagree about the bytes of %d of %d documents, which are left "
                "as they are",
                aligned.num_disagreeing,
                batch.documents.num_documents,
            )
        if self.counts["alignable"] >= _SEEN and self.aligned_share < LOW_SHARE:
            self._warn(
                "share",
                "only %.0f %% of the trainee's tokens begin where one of the prior's begins; the "
                "others are never edited: a prior whose tokenizer is nearer the trainee's edits "
                "more",
                100 * self.aligned_share,
            )

    def take_counts(self) -> dict[str, int]:
        """What was counted since the last call."""
        since = {name: self.counts[name] - self._taken[name] for name in self.counts}
        self._taken = dict(self.counts)
        return since

    def _warn(self, what: str, message: str, *values: object) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning(message, *values)

    def run_gathered(self, function: Callable[[], T]) -> T:
        """Call a function that uses the prior; see `BasePrior`."""
        return self._prior.run_gathered(function)

    def make_idle_passes(self) -> None:
        """Take part in the passes of other ranks; see `BasePrior`."""
        self._prior.make_idle_passes()

    def compile(self, **options: Any) -> None:
        """Compile the trunk; see `Prior.compile`."""
        self._prior.compile(**options)

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Compare a tokenizer with the trainee's.

        Raises:
            ValueError: it is another one.
        """
        check_same_tokenizer(tokenizer, self.tokenizer, self.vocab_size)

    def aligned_to(self, tokenizer: Any) -> BasePrior:
        """This prior, or the one that it aligns for another tokenizer; see `Prior.aligned_to`."""
        try:
            self.set_tokenizer(tokenizer)
        except ValueError:
            return self._prior.aligned_to(tokenizer)
        return self

    def prepare_for(self, trainee: nn.Module, autocast_dtype: torch.dtype | None) -> None:
        """Check that the prior can edit for a trainee; see `BasePrior`."""
        self._prior.prepare_for(trainee, autocast_dtype)

    def check_can_swap(self) -> NoReturn:
        """Refuse new weights.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a prior that is aligned to another tokenizer can't take over the trainee's weights, "
            "which are those of another model; leave refresh out, or from generation 2 on use a "
            "prior with the trainee's tokenizer: self_edit(..., later_prior='trainee'), "
            "later_prior: trainee in a recipe, or Prior.from_pretrained(checkpoint)"
        )
