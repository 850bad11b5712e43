"""ModelPrior: scores documents with a model, its own or the one in training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..head.early_reject import EarlyReject
from ..head.logprob import Competitors
from ..head.predictions import HeadPredictions
from ..head.projection import Head
from ..tokens.documents import Documents
from ..tokens.token_batch import TokenBatch
from ..tokens.vocabulary import Vocabulary
from ..transfer import send
from .adapters import active_adapters
from .base import BasePrior
from .families import find_head, find_trunk, unwrap_model
from .fingerprint import fingerprint
from .forward import TrunkPasses
from .frozen import FrozenModel, input_device, own_precision
from .model_config import max_positions, pad_id
from .self_check import check_model
from .sharding import Rendezvous, check_not_fsdp1, check_not_zero3, is_sharded
from .shared_base import check_adapter_is_inside, check_is_another_model, check_is_same_model

T = TypeVar("T")


class ModelPrior(BasePrior):
    """What `Prior` knows of its model, and how it runs it; see `Prior`.

    Args:
        model: a causal language model.
        tokenizer: of the model, or None.
        shared: whether the model is the one in training.
        adapter: of a shared model: the adapter to switch on; None: all are switched off.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, shared: bool, adapter: str | None
    ) -> None:
        lm = unwrap_model(model)
        find_trunk(lm)
        check_not_zero3(model, shared=shared)
        if input_device(model).type == "meta":
            raise ValueError(
                "model: its weights are on the meta device, so that it can't compute; load it with "
                "from_pretrained, or move it by model.to_empty(...) and load its weights first"
            )
        if not shared:
            check_adapter_is_inside(model)
            model.eval().requires_grad_(False)
        self.model = model
        self.is_shared = shared
        self.adapter = adapter
        self.autocast_dtype: torch.dtype | None = None
        self.generation = 0
        self.early_reject = EarlyReject()
        self._frozen = FrozenModel(shared)
        self._passes = TrunkPasses(lm.config)
        self._rendezvous = Rendezvous()
        self._fingerprint: tuple[object, str] | None = None
        self._problem = ""  # why it can't be used any more
        self.set_tokenizer(tokenizer)
        with self._frozen.as_it_is(model, adapter), own_precision(self.device, None):
            check_model(
                model, lm, lambda: self.head, self.run_gathered, self.device,
                whole=not shared and lm is not model and hasattr(model, "peft_config"),
            )  # fmt: skip

    def __repr__(self) -> str:
        kind = "shared" if self.is_shared else "separate"
        name = type(unwrap_model(self.model)).__name__
        return f"Prior({name}, {kind}, vocab_size={self.vocab_size}, device={self.device})"

    @property
    def device(self) -> torch.device:
        """Where documents are scored."""
        return input_device(self.model)

    @property
    def head(self) -> Head:
        """The vocabulary projection, looked up; a batch does so once."""
        return find_head(unwrap_model(self.model), self._adapters)

    @property
    def _adapters(self) -> list[str]:
        """The adapters that it scores with."""
        if self.is_shared:
            return [] if self.adapter is None else [self.adapter]
        return active_adapters(self.model)

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP2 has spread its weights over ranks, so that all must score together."""
        return is_sharded(self.model)

    @property
    def description(self) -> str:
        """What it is, in a few words of Markdown, for a model card."""
        if self.is_shared:
            return "the frozen base of this model itself"
        lm = unwrap_model(self.model)
        return f"`{getattr(lm.config, '_name_or_path', '') or type(lm).__name__}`"

    @property
    def vocab_size(self) -> int:
        """Number of ids that the prior gives a probability to; padding included."""
        return self._vocabulary.size

    @property
    def max_length(self) -> int | None:
        """The longest document that the prior can score, in tokens; None: no limit."""
        return max_positions(unwrap_model(self.model).config)

    @property
    def pad_id(self) -> int:
        """The id to pad rows with."""
        return pad_id(unwrap_model(self.model).config, self.tokenizer)

    @property
    def fingerprint(self) -> str:
        """Differs between priors whose scores differ: of configuration, adapters and all weights.

        The same on any device. With weights sharded over ranks, reading it is a collective.
        """
        made_of = (id(self.model), *self._adapters)
        if self._fingerprint is None or self._fingerprint[0] != made_of:
            self._fingerprint = made_of, fingerprint(self.model, self._adapters)
        own = self._fingerprint[1]
        return own if self.autocast_dtype is None else f"{own} in {self.autocast_dtype}"

    @property
    def uses_kernel(self) -> bool:
        """Whether the GPU kernel computes log P; see `use_kernel`."""
        return self.early_reject.uses_kernel

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Use `tokenizer` to know special tokens, the chat template and the end of the vocabulary.

        A `ToEditCollator` does this for a prior that came without one.

        Raises:
            ValueError: the tokenizer has more tokens than the prior's vocabulary.
        """
        self._vocabulary = Vocabulary(self.head.vocab_size, tokenizer)
        self.tokenizer = tokenizer
        self.protection = self._vocabulary.protection

    def forbidden_ids(self, *, forbid_special: bool, device: torch.device | None = None) -> Tensor:
        """The ids that must not be drawn: (m,) int64, on the prior's device or another.

        Ids that no token of the tokenizer has are padding of the vocabulary, and stand for no text.
        """
        device = self.device if device is None else device
        special = self.special_ids if forbid_special else frozenset()
        return self._vocabulary.forbidden(special, device)

    # Scoring a batch.

    def predict(self, batch: TokenBatch, where: Tensor) -> HeadPredictions:
        """Run the trunk on a batch, to predict some of its tokens; the host does not wait.

        Args:
            batch: on the host; M tokens.
            where: (n,) int64, on the host, ascending: which of them; all are `scorable`.

        Raises:
            ValueError: the weights move in training, or a swap broke off.
        """
        head = self.head
        states = head.ready(self.predictive_states(batch.documents, batch.tokens, where))
        return HeadPredictions(
            head=head,
            states=states,
            tokens=send(batch.tokens[where], states.device),
            competitors=self.early_reject.likely_competitors,
            forbidden=lambda special: self.forbidden_ids(
                forbid_special=special, device=states.device
            ),
            with_kernel=self.uses_kernel,
        )

    def predictive_states(self, documents: Documents, tokens: Tensor, where: Tensor) -> Tensor:
        """The hidden states from which the head predicts some tokens, in one pass of the trunk.

        The pass is queued; the host does not wait for it.

        Args:
            documents: of the batch; M tokens.
            tokens: (M,) int64, on the host.
            where: (n,) int64, on the host: which tokens are to be predicted, ascending; never the
                first of a document.

        Returns:
            (n, D), on the device of the trunk's output.
        """
        if self._problem:
            raise ValueError(self._problem)
        if len(where) == 0:
            self.make_idle_passes()
            return torch.zeros(0, 1, device=self.device)
        # Documents without a wanted token need no pass.
        needed = torch.zeros(documents.num_documents, dtype=torch.bool)
        needed[documents.document[where]] = True
        with self._scoring():
            return self._passes.states(
                unwrap_model(self.model), documents, tokens, where, needed, self.device,
                self._rendezvous if self.is_sharded else None,
            )  # fmt: skip

    def likely_competitors(self, states: Tensor) -> Competitors | None:
        """The ids that the head should visit first; see `EarlyReject`."""
        return self.early_reject.likely_competitors(self.head, states)

    def run_gathered(self, function: Callable[[], T]) -> T:
        """Call a function that uses parts of the prior, gathered first if FSDP2 has sharded it.

        Its head computes in its own precision there, whatever autocast the caller is in.
        """
        with own_precision(self.device, None):
            return self._rendezvous.run(self.model, function)

    def make_idle_passes(self) -> None:
        """Take part in the passes of other ranks, if the prior is sharded over them.

        Ranks with such a prior must edit equally often.
        """
        if self.is_sharded:
            self.run_gathered(self._idle)

    def _idle(self) -> None:
        lm, num_idle = unwrap_model(self.model), self._rendezvous.idle_passes(0)
        with self._scoring():
            self._passes.make_idle_passes(lm, num_idle, self.device)

    def _scoring(self) -> AbstractContextManager[None]:
        return self._frozen.scoring(self.model, self.adapter, self.device, self.autocast_dtype)

    # Before training.

    def prepare_for(self, trainee: nn.Module, autocast_dtype: torch.dtype | None) -> None:
        """Check that the prior can edit for a trainee; a shared one then computes as it does.

        Args:
            trainee: the model that a Trainer trains.
            autocast_dtype: of its mixed precision, bf16 or fp16; None: it has none.

        Raises:
            ValueError: the prior is the model in training, or a shared prior is not, or can't score
                with a trainee that is spread over ranks so.
        """
        if not self.is_shared:
            check_is_another_model(self.model, trainee)
            return
        check_not_zero3(trainee, shared=True)
        check_not_fsdp1(trainee)
        check_is_same_model(self.model, trainee)
        if self.head.vocab_size != self.vocab_size:  # its embeddings were resized since
            self.set_tokenizer(self.tokenizer)
        # accelerate wraps only the forward of the whole model in autocast; a shared prior's trunk
        # is called by itself, and should compute as the trainee does.
        if self.autocast_dtype is None:
            self.autocast_dtype = autocast_dtype

    def compile(self, **options: Any) -> None:
        """Compile the trunk by `torch.compile`, for batches of any shape.

        The first batch takes the compiler a minute or so; batches of other shapes do not compile
        again (but for a single row, which is compiled once more). Weights, also of later swaps, are
        those of the model.

        Args:
            options: for `torch.compile`; `dynamic` is True unless given.

        Raises:
            ValueError: a shared prior, which is the model in training.
        """
        if self.is_shared:
            raise ValueError(
                "a shared prior is the model in training; compile that, by torch_compile=True in "
                "the TrainingArguments, or load a separate prior"
            )
        find_trunk(unwrap_model(self.model)).compile(**{"dynamic": True, **options})

    def use_kernel(self, wanted: bool = True) -> None:
        """Sum tiles of logits by a Triton kernel instead of PyTorch's operations, on a GPU.

        `selected` is the same, up to the rounding of logits in 16-bit weights.

        Raises:
            ValueError: triton is not installed, the GPU can't run it, or the vocabulary projection
                is quantised.
        """
        self.early_reject.use_kernel(self.head, wanted)
