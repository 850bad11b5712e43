"""Prior: a frozen causal language model that scores documents."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..distributed import all_reduce
from ..head import kernels
from ..head.logprob import Competitors, measure_competitors
from ..head.projection import Head
from ..tokens.checks import check_same_tokenizer
from ..tokens.documents import Documents
from ..tokens.protection import special_token_ids, template_sequences
from ..tokens.token_batch import TokenBatch
from ..transfer import send
from .adapters import (
    active_adapter,
    adapters_switched,
    check_adapter_exists,
    check_base_is_frozen,
    evaluation_mode,
    parameters_used,
)
from .families import find_head, find_trunk, max_positions, unwrap_model
from .forward import can_pack, hidden_states
from .loading import load_model, load_tokenizer
from .passes import PASS_COST, Pass, plan_passes
from .predictions import HeadPredictions
from .sharding import check_not_zero3, fingerprint, has_fsdp1, is_sharded, run_inside
from .swap import PreparedSwap, prepare_swap

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
        ValueError: the model computes its logits in a way that this package does not know.

    Example:
        >>> prior = Prior.from_pretrained("meta-llama/Llama-3.2-1B")  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None) -> None:
        self._setup(model, tokenizer, shared=False, adapter=None)

    def _setup(
        self, model: nn.Module, tokenizer: Any, *, shared: bool, adapter: str | None
    ) -> None:
        lm = unwrap_model(model)
        find_trunk(lm)
        check_not_zero3(model, shared=shared)
        self.model = model
        self.is_shared = shared
        self.adapter = adapter
        self.autocast_dtype: torch.dtype | None = None
        self.generation = 0
        self._checked_frozen = False
        self._is_running = False
        self._fingerprint = ""
        self.uses_kernel = False
        self._can_pack: bool | None = None
        self._competitors: Competitors | None = None
        if not shared:
            model.eval().requires_grad_(False)
        self.set_tokenizer(tokenizer)
        self._check_logits()

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Use `tokenizer` to know special tokens, the chat template and the end of the vocabulary.

        A `ToEditCollator` does this for a prior that came without one.

        Raises:
            ValueError: the tokenizer has more tokens than the prior's vocabulary.
        """
        if tokenizer is not None and len(tokenizer) > self.vocab_size:
            # A padding token that was added to the tokenizer only does no harm.
            special = set(tokenizer.all_special_ids)
            if set(range(self.vocab_size, len(tokenizer))) - special:
                raise ValueError(
                    f"tokenizer has {len(tokenizer)} tokens, but the prior's vocabulary has only "
                    f"{self.vocab_size}; pass the tokenizer that the prior was trained with"
                )
        self.tokenizer = tokenizer
        self._forbidden: dict[tuple[bool, torch.device], Tensor] = {}
        self.special_ids = special_token_ids(tokenizer)
        self.template_sequences = template_sequences(tokenizer)

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
            try:
                from peft import PeftModel
            except ImportError as error:
                raise ImportError(
                    f"adapter={adapter!r} needs PEFT ({error}); "
                    'pip install "toedit_collate[recipes]", or peft alone'
                ) from error
            model = PeftModel.from_pretrained(model, adapter)  # type: ignore[arg-type]
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
        prior = cls.__new__(cls)
        prior._setup(trainee, tokenizer, shared=True, adapter=adapter)
        return prior

    def aligned_to(self, tokenizer: Any) -> Any:
        """This prior for a trainee with another tokenizer, which cuts the same text elsewhere.

        Scores then are lower bounds, and tokens that begin inside one of the prior's are left
        alone: see `AlignedPrior`.

        Args:
            tokenizer: of the trainee: byte-level BPE, or SentencePiece with byte fallback. So must
                be the prior's own.

        Returns:
            An `AlignedPrior`; this prior itself where the tokenizers are the same.

        Raises:
            ValueError: one of the two is of another kind, or the prior has none.

        Example:
            >>> prior = Prior.from_pretrained("meta-llama/Meta-Llama-3-8B")  # doctest: +SKIP
            >>> tokenizer = AutoTokenizer.from_pretrained("allenai/OLMo-1B-hf")  # doctest: +SKIP
            >>> collator = ToEditCollator(prior.aligned_to(tokenizer))  # doctest: +SKIP
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

    @property
    def device(self) -> torch.device:
        """Where documents are scored."""
        return unwrap_model(self.model).get_input_embeddings().weight.device

    @property
    def head(self) -> Head:
        """The vocabulary projection."""
        lm = unwrap_model(self.model)
        return find_head(lm, self.adapter if self.is_shared else active_adapter(self.model))

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
        return self.head.vocab_size

    @property
    def max_length(self) -> int | None:
        """The longest document that the prior can score, in tokens; None: no limit."""
        lm = unwrap_model(self.model)
        return max_positions(lm.config)

    @property
    def pad_id(self) -> int:
        """The id to pad rows with."""
        lm = unwrap_model(self.model)
        for holder in (self.tokenizer, lm.config.get_text_config()):
            for name in ("pad_token_id", "eos_token_id"):
                value = getattr(holder, name, None)
                if isinstance(value, int) and value >= 0:
                    return value
        return 0

    def forbidden_ids(self, *, forbid_special: bool) -> Tensor:
        """Which ids must not be drawn: (V,) bool on the device of the head.

        Ids behind the tokenizer's last are padding of the vocabulary; they never stand for text.
        """
        device = self.device if self.head.weight is None else self.head.weight.device
        known = self._forbidden.get((forbid_special, device))
        if known is not None:
            return known
        forbidden = torch.zeros(self.vocab_size, dtype=torch.bool)
        if self.tokenizer is not None:
            forbidden[len(self.tokenizer) :] = True
        if forbid_special:
            forbidden[[i for i in self.special_ids if i < self.vocab_size]] = True
        return self._forbidden.setdefault((forbid_special, device), forbidden.to(device))

    def scorable(self, batch: TokenBatch) -> Tensor:
        """Which tokens have a probability, (M,) bool: all but the first of each document."""
        return batch.documents.position > 0

    def predict(self, batch: TokenBatch, where: Tensor) -> HeadPredictions:
        """Pass a batch through the trunk, to predict some of its tokens; the host does not wait.

        Args:
            batch: on the host; M tokens.
            where: (n,) int64, on the host, ascending: which of them; all are `scorable`.
        """
        states = self.predictive_states(batch.documents, batch.tokens, where)
        return HeadPredictions(
            head=self.head,
            states=states,
            tokens=send(batch.tokens[where], states.device),
            competitors=lambda head, states: self.likely_competitors(states),
            forbidden=lambda special: self.forbidden_ids(forbid_special=special),
            with_kernel=self.uses_kernel,
        )

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
            if unwrap_model(self.model) is unwrap_model(trainee):
                raise ValueError(
                    "the prior is the model in training, which Prior(model) has frozen; load a "
                    "second copy of the weights for the prior, or train with LoRA and use "
                    "Prior.shared(model)"
                )
            return
        check_not_zero3(trainee, shared=True)
        if has_fsdp1(trainee):
            raise ValueError(
                "Prior.shared can't score with a model that FSDP version 1 has wrapped; set "
                "fsdp_version: 2 (in fsdp_config, or accelerate's config), or load a separate "
                "prior with Prior.from_pretrained"
            )
        # accelerate wraps only the forward of the whole model in autocast; a shared prior's trunk
        # is called by itself, and should compute as the trainee does.
        if self.autocast_dtype is None:
            self.autocast_dtype = autocast_dtype

    def check_can_swap(self) -> None:
        """Do nothing: weights can be swapped."""

    def predictive_states(self, documents: Documents, tokens: Tensor, where: Tensor) -> Tensor:
        """The hidden states from which the head predicts some tokens, in one pass of the trunk.

        The pass is queued; the host does not wait for it.

        Args:
            documents: of the batch; M tokens.
            tokens: (M,) int64, on the host.
            where: (n,) int64, on the host: which tokens are to be predicted, ascending; never the
                first of a document.

        Returns:
            (n, D), on the device of the head.
        """
        if len(where) == 0:
            self.stand_by()
            return torch.zeros(0, 1, device=self.device)
        # Documents without a wanted token need no pass.
        needed = torch.zeros(documents.num_documents, dtype=torch.bool)
        needed[documents.document[where]] = True
        place = torch.full((len(tokens),), -1)  # in `where`
        place[where] = torch.arange(len(where))
        trunk = find_trunk(unwrap_model(self.model))
        passes = self._passes(documents, tokens, needed)
        num_idle = self._idle_passes(len(passes))
        pieces, places = [], []
        with self._scoring():
            for one in passes:
                hidden = hidden_states(trunk, one.arguments, self.device)
                here = (place[one.members] >= 0).nonzero().squeeze(-1)
                # The state of the token before predicts the token. A model that is spread over
                # several devices gives it on its last one.
                before = send(one.cells[here] - 1, hidden.device)
                # detach: for gradient checkpointing, PEFT's hook marks embeddings as requiring
                # gradients even under no_grad.
                pieces.append(hidden.detach().flatten(0, 1)[before])
                places.append(place[one.members[here]])
        self._make_idle_passes(num_idle)
        states = self.head.ready(pieces[0] if len(pieces) == 1 else torch.cat(pieces))
        if len(pieces) == 1:
            return states
        return states[send(torch.cat(places).argsort(), states.device)]

    def _passes(self, documents: Documents, tokens: Tensor, needed: Tensor) -> list[Pass]:
        kind = "cpu" if self.device.type == "cpu" else "gpu"
        if is_sharded(self.model):
            kind = "sharded"
        if self._can_pack is None:
            # To try it takes passes, which all ranks of a sharded prior would have to make.
            with self._frozen():
                lm = unwrap_model(self.model)
                self._can_pack = kind != "sharded" and can_pack(lm, self.device)
        packed, pass_cost = self._can_pack, PASS_COST[kind]
        return plan_passes(documents, tokens, needed, packed=packed, pass_cost=pass_cost)

    def likely_competitors(self, states: Tensor) -> Competitors | None:
        """The ids that the head should visit first; measured on the first states it is given.

        None for a head that only its module can compute: it is always computed whole.
        """
        if self.head.weight is None or len(states) == 0:
            return None
        if self._competitors is None or self._competitors.order.device != states.device:
            self._competitors = measure_competitors(self.head, states)
        return self._competitors

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
        if wanted:
            kernels.check_usable(self.head)
        self.uses_kernel = wanted

    def run(self, function: Callable[[], T]) -> T:
        """Call a function that uses parts of the prior, gathered first if FSDP2 has sharded it."""
        if self._is_running:
            return function()
        self._is_running = True
        try:
            return run_inside(self.model, function)
        finally:
            self._is_running = False

    def stand_by(self) -> None:
        """Make no pass, but take part in those of other ranks, if the prior is sharded over them.

        Ranks with such a prior must edit equally often.
        """
        self.run(lambda: self._make_idle_passes(self._idle_passes(0)))

    def _idle_passes(self, num_passes: int) -> int:
        """How many passes other ranks make beyond ours; a sharded prior needs all ranks in each."""
        if not is_sharded(self.model):
            return 0
        return int(all_reduce([num_passes], "max")[0]) - num_passes

    def _make_idle_passes(self, count: int) -> None:
        if count:
            trunk = find_trunk(unwrap_model(self.model))
            row = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
            with self._scoring():
                for _ in range(count):
                    trunk(input_ids=row, use_cache=False)

    @property
    def fingerprint(self) -> str:
        """Tells priors apart by a sample of each weight: the same on any device.

        With weights sharded over ranks, reading it is a collective.
        """
        if not self._fingerprint:
            adapter = self.adapter if self.is_shared else active_adapter(self.model)
            self._fingerprint = fingerprint(parameters_used(self.model, adapter))
        if self.autocast_dtype is None:
            return self._fingerprint
        return f"{self._fingerprint} in {self.autocast_dtype}"

    def swap(self, source: str | os.PathLike[str] | Mapping[str, Tensor]) -> None:
        """Take over the weights of a checkpoint, in place: all or nothing.

        Everything is checked first; a checkpoint that is missing, half-written, of another shape
        or not finite leaves the prior as it was. Only safetensors are read.

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
        source = source if isinstance(source, Mapping) else Path(source)
        return prepare_swap(self.model, source, shared=self.is_shared, adapter=self.adapter)

    def complete_swap(self, prepared: PreparedSwap) -> None:
        """The second half of `swap`: copy the weights."""
        prepared.copy()
        self.model, self.adapter = prepared.model, prepared.adapter
        self.generation += 1
        self._fingerprint = ""
        logger.info("prior swapped; it now is of generation %d", self.generation)

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        """As `_frozen`, once it is certain that training does not change what is scored with."""
        if self.is_shared and not self._checked_frozen:
            check_base_is_frozen(self.model, self.adapter)
            self._checked_frozen = True
        with self._frozen():
            if self.autocast_dtype is None:
                yield
            else:
                with torch.autocast(self.device.type, self.autocast_dtype):
                    yield

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """The frozen weights, in eval mode, without gradients; afterwards all as before."""
        with ExitStack() as stack:
            # Not inference_mode: it marks tensors that FSDP2 must write to in its next step.
            stack.enter_context(torch.no_grad())
            if self.is_shared:
                stack.enter_context(adapters_switched(self.model, self.adapter))
            stack.enter_context(evaluation_mode(self.model))
            yield

    def _check_logits(self) -> None:
        """Compare the logits that `Head` computes with the model's own, on a few tokens."""
        lm = unwrap_model(self.model)
        ids = torch.arange(4, device=self.device).unsqueeze(0) % self.vocab_size

        def both_ways() -> tuple[Tensor, Tensor, Tensor]:
            # .forward: where FSDP2 has sharded the model, this is inside its call already.
            expected = lm.forward(input_ids=ids, use_cache=False).logits[0].float()
            hidden = find_trunk(lm)(input_ids=ids, use_cache=False, return_dict=True)[0]
            return expected, hidden, self.head.logits(hidden[0])

        with self._frozen():
            expected, hidden, logits = self.run(both_ways)
            logits = logits.to(expected.device)
        if logits.shape != expected.shape:
            difference = float("inf")
        else:
            difference = float((logits - expected).abs().max() / (1 + expected.abs().max()))
        # 16-bit models round a logit at 2**-8 of its size, and may be off by a few such steps.
        tolerance = 1e-4 if hidden.dtype in (torch.float32, torch.float64) else 0.05
        if difference > tolerance:
            raise ValueError(
                f"{type(lm).__name__} computes its logits in a way that toedit_collate does not "
                f"know (off by {difference:.2g} of their size); please open an issue that names "
                "the model"
            )
