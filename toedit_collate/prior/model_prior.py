"""ModelPrior: scores documents with a model, its own or the one in training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..head import kernels
from ..head.logprob import Competitors, measure_competitors
from ..head.predictions import Predictions
from ..head.projection import Head
from ..tokens.documents import Documents
from ..tokens.protection import Vocabulary
from ..tokens.token_batch import TokenBatch
from ..transfer import send
from .adapters import active_adapters
from .base import BasePrior
from .families import find_head, find_trunk, max_positions, pad_id, unwrap_model
from .fingerprint import fingerprint
from .forward import make_idle_passes, run_trunk
from .frozen import (
    FrozenModel,
    check_is_another_model,
    check_is_same_model,
    input_device,
    own_precision,
)
from .self_check import check_model
from .sharding import Rendezvous, check_not_zero3, has_fsdp1, is_sharded

T = TypeVar("T")


class ModelPrior(BasePrior):
    """What `Prior` knows about its model, and how it runs the model.

    If `shared`, the model is the one in training, with `adapter` on while it scores, or with none.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, shared: bool, adapter: str | None
    ) -> None:
        lm = unwrap_model(model)
        find_trunk(lm)
        check_not_zero3(model)
        if not shared:
            model.eval().requires_grad_(False)
        self.model = model
        self.is_shared = shared
        self.adapter = adapter
        self.autocast_dtype: torch.dtype | None = None
        self.generation = 0
        self.uses_kernel = False
        self.competitors: Competitors | None = None
        self._frozen = FrozenModel(shared)
        self._rendezvous = Rendezvous()
        self._fingerprint: tuple[object, str] | None = None
        self._problem = ""  # why it can't be used any more
        self.set_tokenizer(tokenizer)
        with self._frozen.scoring(model, adapter, None, check=False):
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
        return input_device(self.model)

    @property
    def head(self) -> Head:
        """The vocabulary projection."""
        return find_head(unwrap_model(self.model), self._adapters)

    @property
    def _adapters(self) -> list[str]:
        """The adapters that it scores with."""
        if self.is_shared:
            return [] if self.adapter is None else [self.adapter]
        return active_adapters(self.model)

    @property
    def is_sharded(self) -> bool:
        return is_sharded(self.model)

    @property
    def description(self) -> str:
        if self.is_shared:
            return "the frozen base of this model itself"
        lm = unwrap_model(self.model)
        return f"`{getattr(lm.config, '_name_or_path', '') or type(lm).__name__}`"

    @property
    def vocab_size(self) -> int:
        return self._vocabulary.size

    @property
    def max_length(self) -> int | None:
        """The longest document that the model was built for, in tokens; None: no limit."""
        return max_positions(unwrap_model(self.model).config)

    @property
    def pad_id(self) -> int:
        return pad_id(self.tokenizer, unwrap_model(self.model).config.get_text_config())

    @property
    def fingerprint(self) -> str:
        """A hash of configuration, adapters and all weights, the same on any device.

        With weights sharded over ranks, reading it is a collective.
        """
        made_of = (id(self.model), *self._adapters)
        if self._fingerprint is None or self._fingerprint[0] != made_of:
            self._fingerprint = made_of, fingerprint(self.model, self._adapters)
        own = self._fingerprint[1]
        return own if self.autocast_dtype is None else f"{own} in {self.autocast_dtype}"

    @property
    def added_bos(self) -> int | None:
        return self._vocabulary.added_bos

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Use `tokenizer` to know special tokens, the chat template and unused ids."""
        self._vocabulary = Vocabulary(self.head.vocab_size, tokenizer)
        self.tokenizer = tokenizer
        self.protection = self._vocabulary.protection

    def predict(self, batch: TokenBatch, where: Tensor) -> Predictions:
        """Run the trunk on a batch, without a wait; raises where training changes its weights."""
        head = self.head
        bos = None if batch.pieces is None else self.added_bos
        states = head.ready(self.predictive_states(batch.contexts, batch.tokens, where, bos))

        def forbidden(with_special: bool) -> Tensor:
            special = self.special_ids if with_special else frozenset()
            return self._vocabulary.forbidden(special, states.device)

        return Predictions(
            head=head,
            states=states,
            tokens=send(batch.tokens[where], states.device),
            competitors=self.likely_competitors,
            forbidden=forbidden,
            with_kernel=self.uses_kernel,
        )

    def predictive_states(
        self, documents: Documents, tokens: Tensor, where: Tensor, bos_id: int | None = None
    ) -> Tensor:
        """The hidden states from which the head predicts some tokens, without a wait: (n, D).

        They are on the device of the trunk's output. `documents`, `tokens` and `where` are as in
        `TokenBatch` and `predict`. The model reads `bos_id` before each document that does not
        begin with it.
        """
        if self._problem:
            raise ValueError(self._problem)
        if len(where) == 0:
            self.make_idle_passes()
            return torch.zeros(0, 1, device=self.device)
        if bos_id is not None:
            documents, tokens, place = documents.put_before(tokens, bos_id)
            where = place[where]
            longest = max(documents.lengths)
            if self.max_length is not None and longest > self.max_length:
                raise ValueError(
                    f"a text of {longest - 1} tokens and the prior's BOS before it are longer than "
                    f"its {self.max_length} positions; shorten rows "
                    f"(max_length={self.max_length - 1} or less), or use context='document'"
                )
        ranks = self._rendezvous if self.is_sharded else None
        with self._scoring():
            lm = unwrap_model(self.model)
            return run_trunk(lm, documents, tokens, where, self.device, ranks)

    def likely_competitors(self, head: Head, states: Tensor) -> Competitors | None:
        """The ids that the head should sum first, measured on the first states."""
        if len(states) == 0:
            return None
        known = self.competitors
        # The embeddings may have been resized, or the model moved.
        fits = known is not None and len(known.place) == head.vocab_size
        if known is None or not fits or known.order.device != states.device:
            self.competitors = measure_competitors(head, states)
        return self.competitors

    def run_gathered(self, function: Callable[[], T]) -> T:
        """Call a function that uses the prior's weights, gathered first if FSDP2 has sharded them.

        The function computes in the prior's own precision, whatever autocast the caller uses.
        """
        with own_precision(self.device, None):
            return self._rendezvous.run(self.model, function)

    def make_idle_passes(self) -> None:
        """Take part in the passes of other ranks, which must edit equally often."""

        def idle() -> None:
            num_idle = self._rendezvous.idle_passes(0)
            with self._scoring():
                make_idle_passes(unwrap_model(self.model), num_idle, self.device)

        if self.is_sharded:
            self.run_gathered(idle)

    def _scoring(self) -> AbstractContextManager[None]:
        return self._frozen.scoring(self.model, self.adapter, self.autocast_dtype)

    def prepare_for(self, trainee: nn.Module, autocast_dtype: torch.dtype | None) -> None:
        """Check that a separate prior is not the trainee, and that a shared one is and can be."""
        if not self.is_shared:
            check_is_another_model(self.model, trainee)
            return
        check_not_zero3(trainee)
        if has_fsdp1(trainee):
            raise ValueError(
                "Prior.shared can't score with a model that FSDP version 1 has wrapped; set "
                "fsdp_version: 2 (in fsdp_config, or accelerate's config), or load a separate "
                "prior with Prior.from_pretrained"
            )
        check_is_same_model(self.model, trainee)
        if self.head.vocab_size != self.vocab_size:  # its embeddings were resized since
            self.set_tokenizer(self.tokenizer)
        # accelerate's autocast wraps only the forward pass of the whole model. The prior calls the
        # trunk by itself, which should compute as in training.
        if self.autocast_dtype is None:
            self.autocast_dtype = autocast_dtype

    def compile(self, **options: Any) -> None:
        """Compile the trunk by `torch.compile` with some `options`, for batches of any shape.

        The first batch takes about a minute; other shapes do not compile again, except a single
        row. Later swaps need no new compilation.

        Raises:
            ValueError: the prior is shared: it is the model in training.
        """
        if self.is_shared:
            raise ValueError(
                "a shared prior is the model in training; compile that, by torch_compile=True in "
                "the TrainingArguments, or load a separate prior"
            )
        find_trunk(unwrap_model(self.model)).compile(**{"dynamic": True, **options})

    def use_kernel(self) -> None:
        """Sum tiles of logits by a Triton kernel instead of PyTorch's operations, on a GPU.

        `selected` is the same, up to the rounding of logits in 16-bit weights.

        Raises:
            ValueError: triton is not installed, or the GPU does not support it.
        """
        kernels.check_usable(self.head)
        self.uses_kernel = True
