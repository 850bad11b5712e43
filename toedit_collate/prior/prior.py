"""Prior: a frozen causal language model that scores documents."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..head.early_reject import EarlyReject
from ..head.logprob import Competitors
from ..head.predictions import HeadPredictions
from ..head.projection import Head
from ..tokens.checks import check_same_tokenizer
from ..tokens.documents import Documents
from ..tokens.token_batch import TokenBatch
from ..tokens.vocabulary import Vocabulary
from ..transfer import send
from .adapters import active_adapters
from .facts import max_positions, pad_id
from .families import find_head, find_trunk, unwrap_model
from .forward import TrunkPasses
from .frozen import FrozenModel, input_device, own_precision
from .identity import fingerprint
from .loading import load_model, load_tokenizer, put_adapter
from .rendezvous import Rendezvous
from .self_check import check_model
from .sharding import check_not_fsdp1, check_not_zero3, is_sharded
from .swap import PreparedSwap, prepare_swap
from .swap_checks import HalfCopiedError
from .trainee import (
    check_adapter_exists,
    check_adapter_is_inside,
    check_base_is_frozen,
    check_base_is_pretrained,
    check_is_another_model,
)

logger = logging.getLogger("toedit_collate")
T = TypeVar("T")


class Prior:
    """A frozen causal language model that scores documents.

    Args:
        model: a causal language model of transformers. It is put into eval mode, and its
            parameters are frozen. To score with the model that you train, use `Prior.shared`.
        tokenizer: the model's tokenizer. With it, special tokens and the chat template's own
            tokens are protected, padding ids of the vocabulary are never drawn, and a trainee
            with another tokenizer is refused.

    Raises:
        TypeError: `model` is not a decoder-only language model of transformers.
        ValueError: a token's probability would not be what the model itself gives it from what
            stands before it: the model sees later tokens, stands behind a learned prompt, or
            computes its logits in a way that this package does not know.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(
        ...     vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        ...     num_attention_heads=2,
        ... ))
        >>> Prior(model)
        Prior(LlamaForCausalLM, separate, vocab_size=64, device=cpu)
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None) -> None:
        self._setup(model, tokenizer, shared=False, adapter=None)

    def _setup(
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
        with self._as_it_is(), own_precision(self.device, None):
            check_model(
                model, lm, lambda: self.head, self.run, self.device,
                whole=not shared and lm is not model and hasattr(model, "peft_config"),
            )  # fmt: skip

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Use `tokenizer` to know special tokens, the chat template and the end of the vocabulary.

        A `ToEditCollator` does this for a prior that came without one.

        Raises:
            ValueError: the tokenizer has more tokens than the prior's vocabulary.
        """
        self._vocabulary = Vocabulary(self.head.vocab_size, tokenizer)
        self.tokenizer = tokenizer
        self.special_ids = self._vocabulary.special_ids
        self.template_sequences = self._vocabulary.template_sequences

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        quantization: Any = None,
        adapter: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        **model_kwargs: Any,
    ) -> Prior:
        """Load a prior, and its tokenizer, from the hub or from a folder.

        Args:
            name_or_path: of the model.
            dtype: of the weights; "auto" takes the checkpoint's.
            device: where to put it; None takes this process's GPU if there is one, else the CPU.
            quantization: None; "8bit" or "4bit" (through bitsandbytes); "int8" (weights alone) or
                "fp8" (weights and activations, on Ada, Hopper and later), through torchao; or a
                quantization config of transformers.
            adapter: name or path of a PEFT adapter to put on the model.
            revision: of the model on the hub.
            model_kwargs: for `AutoModelForCausalLM.from_pretrained`.

        Raises:
            ValueError: unknown `quantization`, or one that the GPU can't compute with.
            ImportError: the library that it needs is not installed.
            OSError: there is no such model.
        """
        model = load_model(
            name_or_path,
            dtype=dtype,
            device=device,
            quantization=quantization,
            revision=revision,
            **model_kwargs,
        )
        if adapter is not None:
            model = put_adapter(model, adapter)
        return cls(model, load_tokenizer(name_or_path, revision))

    @classmethod
    def shared(
        cls, trainee: nn.Module, adapter: str | None = None, *, tokenizer: Any = None
    ) -> Prior:
        """Score with the frozen base of the model in training: no second copy of its weights.

        While scoring, the trainee's adapters are off (or the frozen one called `adapter` is on)
        and the model is in eval mode; afterwards everything is as before.

        Args:
            trainee: the model that a `Trainer` gets or made (`trainer.model`); a PEFT model, or a
                model that PEFT will be put on before training begins.
            adapter: name of a frozen adapter to score with; None: the bare base.
            tokenizer: of the trainee; None: the collator brings it.

        Raises:
            ValueError: the trainee trains weights that the prior would score with, or has no such
                adapter. For a model without an adapter yet, at the first batch.
        """
        if getattr(trainee, "peft_config", None) or adapter is not None:
            check_adapter_exists(trainee, adapter)
            check_base_is_frozen(trainee, adapter)
            check_base_is_pretrained(trainee, adapter)
        prior = cls.__new__(cls)
        prior._setup(trainee, tokenizer, shared=True, adapter=adapter)
        return prior

    def aligned_to(self, tokenizer: Any) -> Any:
        """This prior for a trainee with another tokenizer, which cuts the same text elsewhere.

        Scores then are lower bounds, and tokens that begin inside one of the prior's are left
        alone. Policies that take tokens for a low P (`region="below"`, `drop_below`) may take too
        many, and are warned about: see `AlignedPrior`.

        Args:
            tokenizer: of the trainee: byte-level BPE, or SentencePiece with byte fallback. So must
                be the prior's own.

        Returns:
            An `AlignedPrior`; this prior itself where the tokenizers are the same.

        Raises:
            ValueError: one of the two is of another kind, or the prior has none.

        Example:
            >>> from tokenizers import Tokenizer, models, pre_tokenizers
            >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
            >>> def byte_level(*merges):
            ...     tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
            ...     raw = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, list(merges)))
            ...     raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            ...     return PreTrainedTokenizerFast(tokenizer_object=raw)
            >>> config = LlamaConfig(
            ...     vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            ...     num_attention_heads=2,
            ... )
            >>> prior = Prior(LlamaForCausalLM(config), byte_level(("h", "e")))
            >>> type(prior.aligned_to(byte_level(("t", "h"), ("th", "e")))).__name__
            'AlignedPrior'
            >>> prior.aligned_to(byte_level(("h", "e"))) is prior
            True
        """
        from .aligned import AlignedPrior

        if self.tokenizer is not None:
            try:
                check_same_tokenizer(tokenizer, self.tokenizer, self.vocab_size)
            except ValueError:
                return AlignedPrior(self, tokenizer)
            return self
        return AlignedPrior(self, tokenizer)  # which says what is missing

    def __repr__(self) -> str:
        kind = "shared" if self.is_shared else "separate"
        name = type(unwrap_model(self.model)).__name__
        return f"Prior({name}, {kind}, vocab_size={self.vocab_size}, device={self.device})"

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a Prior holds a model on a device and can't be pickled; send the ToEditCollator to "
            "worker processes instead, which leaves its prior at home"
        )

    # Facts.

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
        """Tells priors apart that score otherwise: by configuration, adapters and all weights.

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

    # Scoring a batch.

    def forbidden_ids(self, *, forbid_special: bool, device: torch.device | None = None) -> Tensor:
        """Which ids must not be drawn: (V,) bool, on the prior's device or another.

        Ids that no token of the tokenizer has are padding of the vocabulary, and stand for no text.
        """
        device = self.device if device is None else device
        return self._vocabulary.forbidden(forbid_special=forbid_special, device=device)

    def scorable(self, batch: TokenBatch) -> Tensor:
        """Which tokens have a probability, (M,) bool: all but the first of each document."""
        return batch.documents.position > 0

    def predict(self, batch: TokenBatch, where: Tensor) -> HeadPredictions:
        """Pass a batch through the trunk, to predict some of its tokens; the host does not wait.

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
            self.stand_by()
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

    def run(self, function: Callable[[], T]) -> T:
        """Call a function that uses parts of the prior, gathered first if FSDP2 has sharded it.

        Its head computes in its own precision there, whatever autocast the caller is in.
        """
        with own_precision(self.device, None):
            return self._rendezvous.run(self.model, function)

    def stand_by(self) -> None:
        """Make no pass, but take part in those of other ranks, if the prior is sharded over them.

        Ranks with such a prior must edit equally often.
        """
        if self.is_sharded:
            self.run(self._stand_by)

    def _stand_by(self) -> None:
        lm, num_idle = unwrap_model(self.model), self._rendezvous.idle_passes(0)
        with self._scoring():
            self._passes.make_idle_passes(lm, num_idle, self.device)

    def _scoring(self) -> AbstractContextManager[None]:
        return self._frozen.scoring(self.model, self.adapter, self.device, self.autocast_dtype)

    def _as_it_is(self) -> AbstractContextManager[None]:
        return self._frozen.as_it_is(self.model, self.adapter)

    # Before training.

    def fit(self, trainee: nn.Module, autocast_dtype: torch.dtype | None) -> None:
        """Check that the prior can edit for a trainee; a shared one then computes as it does.

        Args:
            trainee: the model that a Trainer trains.
            autocast_dtype: of its mixed precision, bf16 or fp16; None: it has none.

        Raises:
            ValueError: the prior is the model in training, or a shared prior can't score with a
                trainee that is spread over ranks so.
        """
        if not self.is_shared:
            check_is_another_model(self.model, trainee)
            return
        check_not_zero3(trainee, shared=True)
        check_not_fsdp1(trainee)
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
        """Compute log P by one fused kernel of triton instead of PyTorch's tiles, on NVIDIA GPUs.

        `selected` is the same, up to the rounding of logits in 16-bit weights.

        Raises:
            ValueError: triton is not installed, the GPU can't run it, or the vocabulary projection
                is quantised.
        """
        self.early_reject.use_kernel(self.head, wanted)

    # Between generations.

    def check_can_swap(self) -> None:
        """Do nothing: weights can be swapped."""

    def swap(self, source: str | os.PathLike[str] | Mapping[str, Tensor]) -> None:
        """Take over the weights of a checkpoint, in place: all or nothing.

        Everything is checked first; a checkpoint that is missing, half-written, of another shape
        or configuration, or not finite leaves the prior as it was. Only safetensors are read. What
        a configuration decides (rotary positions, scales, windows) is compared where there is one:
        a state dict has none, so that of another model with the same shapes is taken.

        Args:
            source: a folder with `model.safetensors` (or its shards and index) or with
                `adapter_model.safetensors`; or a state dict of the model or of its adapter.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: it can't be used; says why.
        """
        self.complete_swap(self.prepare_swap(source))

    def prepare_swap(self, source: str | os.PathLike[str] | Mapping[str, Tensor]) -> PreparedSwap:
        """The first half of `swap`: check everything, so that several ranks can agree on it."""
        if not isinstance(source, Mapping | str | os.PathLike):
            raise TypeError(
                "source must be the folder of a checkpoint or a state dict, got "
                f"{type(source).__name__}; pass a path, or model.state_dict()"
            )
        source = source if isinstance(source, Mapping) else Path(source)
        return prepare_swap(self.model, source, shared=self.is_shared, adapter=self.adapter)

    def complete_swap(self, prepared: PreparedSwap) -> None:
        """The second half of `swap`: copy the weights.

        Raises:
            ValueError: a file was written to since it was checked, or a new adapter could not be
                read to its end; the prior is as before.
            RuntimeError: reading broke off, and the prior can't be used until a swap succeeds.
        """
        try:
            prepared.copy()
        except HalfCopiedError as error:
            # Everything was checked, so this is a disk that fails.
            prepared.discard()
            if not prepared.replaces:
                raise ValueError(
                    f"a new adapter could not be copied ({error.__cause__}); the old prior is kept"
                ) from error
            self._problem = str(error)
            raise
        except ValueError:
            prepared.discard()
            raise
        self._problem = ""
        self.model, self.adapter = prepared.model, prepared.adapter
        self.generation += 1
        self._fingerprint = None
        logger.info("prior swapped; it now is of generation %d", self.generation)
