"""AlignedPrior: a prior for a trainee that has another tokenizer."""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..head.aligned_predictions import AlignedPredictions, Chains
from ..head.groups import GroupColumns, IdGroups
from ..policy import EditPolicy
from ..tokens.alignment.byte_tokenizer import ByteTokenizer
from ..tokens.alignment.document import AlignedBatch, AlignedDocument, Aligner
from ..tokens.alignment.groups import Groups
from ..tokens.checks import check_same_tokenizer, tokenizer_difference
from ..tokens.protection import Protection
from ..tokens.token_batch import TokenBatch
from ..transfer import send
from .base import BasePrior
from .families import pad_id
from .model_prior import ModelPrior

logger = logging.getLogger("toedit_collate")
T = TypeVar("T")

LOW_SHARE = 0.5  # a lower share of aligned tokens causes a warning
_SEEN = 10_000  # tokens before that warning
# The columns after covered bytes are slow to make, and needed in every epoch.
_MAX_TABLE_BYTES = 2**28


class AlignedPrior(BasePrior):
    """A prior for a trainee with another tokenizer.

    Both tokenizers split the same bytes. A token of the trainee that begins where one of the
    prior's begins is scored. Its log P is a lower bound of the log-probability that the prior's
    text continues with the bytes of the token. It is the sum over the chain of the prior's tokens
    that begin inside the token. The last of them counts with all ids of the prior for which the
    trainee's own encoding gives the token. The resample is the first token of the trainee's
    encoding of what the prior draws. A token that begins inside one of the prior's is not scored.

    With `region="above"`, a lower bound selects too few tokens, never a wrong one. With
    `region="below"` or `drop_below`, it may select a token whose true P is higher, and the prior
    warns once.

    Documents whose bytes differ on both sides are left alone. Special tokens of the trainee split
    the text; for the trainee's BOS, the prior sees its own. If the prior's tokenizer adds a BOS to
    texts, the prior also reads one before each document that does not begin with it.

    Args:
        prior: with its tokenizer.
        tokenizer: of the trainee.

    Attributes:
        counts: of the documents and tokens seen so far (`aligned_share`).

    Raises:
        ValueError: the prior has no tokenizer, or the tokens of one of the two do not stand for
            bytes.
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
        self.aligner = Aligner(trainee, own)
        self._groups = Groups.of(self.aligner.groups.first_after(b""), len(trainee.bytes))
        self._bos_id = prior.added_bos
        decides = repr((trainee.bytes, own.bytes, self._bos_id))
        self._name = hashlib.sha256(decides.encode()).hexdigest()[:16]
        self._columns: OrderedDict[bytes, GroupColumns] = OrderedDict()
        self._prepared: dict[bytes, AlignedDocument] = {}
        self._last: tuple[Callable[[], TokenBatch | None], AlignedBatch] | None = None
        self._warned: set[str] = set()
        self.counts = dict.fromkeys(("documents", "left_alone", "alignable", "aligned"), 0)
        self._taken = dict(self.counts)

    def __repr__(self) -> str:
        return f"AlignedPrior({self._prior}, trainee's vocabulary {self.vocab_size})"

    @property
    def unaligned(self) -> ModelPrior:
        return self._prior

    @property
    def device(self) -> torch.device:
        return self._prior.device

    @property
    def vocab_size(self) -> int:
        return len(self.aligner.trainee.bytes)

    @property
    def pad_id(self) -> int:
        return pad_id(self.tokenizer)

    @property
    def fingerprint(self) -> str:
        return f"{self._prior.fingerprint} aligned {self._name}"

    @property
    def description(self) -> str:
        return f"{self._prior.description}, aligned to the tokenizer of this model"

    @property
    def is_sharded(self) -> bool:
        return self._prior.is_sharded

    @property
    def aligned_share(self) -> float:
        """The share of tokens that could be scored, of all but the first of each document."""
        return self.counts["aligned"] / max(1, self.counts["alignable"])

    def scorable(self, batch: TokenBatch) -> Tensor:
        """Which tokens begin where one of the prior's begins: (M,) bool."""
        return torch.from_numpy(self._aligned(batch).begin > 0)

    def take_prepared(self, documents: Mapping[bytes, AlignedDocument]) -> None:
        self._prepared = dict(documents)

    def predict(self, batch: TokenBatch, where: Tensor) -> AlignedPredictions:
        aligned = self._aligned(batch)
        tokens = batch.tokens[where]
        requests, member_row, members = aligned.requests(
            where.numpy(), tokens.numpy(), self._groups
        )
        place = torch.from_numpy(requests)
        states = self._prior.predictive_states(
            aligned.documents, aligned.tokens, place, self._bos_id
        )
        head = self._prior.head
        states = head.ready(states)
        device = states.device
        length = torch.from_numpy(aligned.length[where.numpy()])
        ends = length.cumsum(0)

        def on_device(values: np.ndarray[Any, Any]) -> Tensor:
            return send(torch.from_numpy(values), device)

        def forbidden(with_special: bool) -> Tensor:
            ids = sorted(i for i in self.special_ids if with_special and i < self.vocab_size)
            return send(torch.tensor(ids, dtype=torch.int64), device)

        return AlignedPredictions(
            head=head,
            states=states,
            tokens=send(tokens, device),
            groups=IdGroups(on_device(member_row), on_device(members), len(place)),
            chains=Chains(
                begin=ends - length,
                length=length,
                prior_tokens=aligned.tokens[place],
                is_bounded=torch.from_numpy(np.isin(ends.numpy() - 1, member_row)),
                first_after=self._first_after,
            ),
            num_ids=self.vocab_size,
            forbidden=forbidden,
            competitors=self._prior.likely_competitors,
            warn_about=self._warn_about,
        )

    def _warn_about(self, policy: EditPolicy) -> None:
        """Warn about a policy that selects tokens for a low P, which is only a lower bound."""
        if policy.region == "below" or policy.drop_below is not None:
            self._warn(
                'region="below" and drop_below also take tokens whose true P is higher, since the '
                "P of an aligned prior are lower bounds; leave them out, or use a prior that has "
                "the trainee's tokenizer"
            )

    def _first_after(self, covered: tuple[int, ...]) -> GroupColumns:
        data = self.aligner.prior.decode(list(covered))
        assert data is not None
        known = self._columns.pop(data, None)
        if known is None:
            first = self.aligner.groups.first_after(data) if data else self._groups.first
            known = GroupColumns.of(torch.from_numpy(first))
        self._columns[data] = known
        if len(self._columns) > max(1, _MAX_TABLE_BYTES // known.nbytes):
            self._columns.popitem(last=False)
        return known

    def _aligned(self, batch: TokenBatch) -> AlignedBatch:
        if self._last is not None and self._last[0]() is batch:
            return self._last[1]
        documents = self.aligner.align_all(batch.tokens.numpy(), batch.contexts, self._prepared)
        aligned = AlignedBatch.of(documents, self._prior.max_length, self._bos_id)
        self._last = (weakref.ref(batch), aligned)
        self._count(batch, aligned)
        return aligned

    def _count(self, batch: TokenBatch, aligned: AlignedBatch) -> None:
        is_text = self.aligner.trainee.lengths[batch.tokens.numpy()] > 0
        follows = batch.contexts.position.numpy() > 0
        self.counts["documents"] += batch.contexts.num_documents
        self.counts["left_alone"] += aligned.num_disagreeing
        self.counts["alignable"] += int((is_text & follows).sum())
        self.counts["aligned"] += int((aligned.begin > 0).sum())
        if aligned.num_cut:
            self._warn(
                "a document has more tokens for the prior than its %s positions; the rest of it "
                "is not edited: shorten rows, or use a prior with a longer context",
                self._prior.max_length,
            )
        if aligned.num_disagreeing:
            self._warn(
                "the two tokenizers disagree about the bytes of %d of %d documents, which are left "
                "as they are",
                aligned.num_disagreeing,
                batch.contexts.num_documents,
            )
        if self.counts["alignable"] >= _SEEN and self.aligned_share < LOW_SHARE:
            self._warn(
                "only %.0f %% of the trainee's tokens begin where one of the prior's begins; the "
                "others are never edited: a prior with a more similar tokenizer edits more",
                100 * self.aligned_share,
            )

    def take_counts(self) -> dict[str, int]:
        since = {name: self.counts[name] - self._taken[name] for name in self.counts}
        self._taken = dict(self.counts)
        return since

    def _warn(self, message: str, *values: object) -> None:
        """Log a message once."""
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message, *values)

    def run_gathered(self, function: Callable[[], T]) -> T:
        return self._prior.run_gathered(function)

    def make_idle_passes(self) -> None:
        self._prior.make_idle_passes()

    def compile(self, **options: Any) -> None:
        self._prior.compile(**options)

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Raise a ValueError unless the tokenizer is the trainee's."""
        check_same_tokenizer(tokenizer, self.tokenizer, self.vocab_size)

    def aligned_to(self, tokenizer: Any) -> BasePrior:
        if tokenizer_difference(tokenizer, self.tokenizer, self.vocab_size):
            return self._prior.aligned_to(tokenizer)
        return self

    def prepare_for(self, trainee: nn.Module, autocast_dtype: torch.dtype | None) -> None:
        self._prior.prepare_for(trainee, autocast_dtype)

    def check_can_swap(self) -> NoReturn:
        raise ValueError(
            "a prior that is aligned to another tokenizer can't take over the trainee's weights, "
            "which are those of another model; leave refresh out, or make generations with a prior "
            "that has the trainee's tokenizer, such as Prior.from_pretrained(checkpoint)"
        )
