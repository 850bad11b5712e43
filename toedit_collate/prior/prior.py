"""Prior: a frozen causal language model, and the ways to make, align and swap one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..tokens.checks import tokenizer_difference
from .adapters import adapter_names
from .aligned import AlignedPrior
from .base import BasePrior
from .frozen import check_base_is_frozen
from .loading import default_device, load_tokenizer, quantization_config
from .model_prior import ModelPrior
from .sharding import without_zero3
from .swap import PreparedSwap, prepare_swap

logger = logging.getLogger("toedit_collate")


class Prior(ModelPrior):
    """A frozen causal language model that scores documents.

    Args:
        model: a causal language model of transformers. It is put into eval mode, and its
            parameters are frozen. To score with the model that you train, use `Prior.shared`.
        tokenizer: the model's tokenizer. With it, special tokens and the chat template's text are
            protected, unused ids of the vocabulary are never drawn, and a trainee with another
            tokenizer is refused.

    Raises:
        TypeError: `model` is not a causal language model of transformers.
        ValueError: the prior's probabilities would differ from the model's own: the model sees
            later tokens, has a learned prompt, or computes its logits in an unknown way.

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
        super().__init__(model, tokenizer, shared=False, adapter=None)

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
        """Load a prior and its tokenizer from the hub or from a folder.

        Args:
            name_or_path: of the model.
            dtype: of the weights; "auto" uses the checkpoint's.
            device: where to put it; None: this process's GPU if there is one, else the CPU.
            quantization: None; "8bit" or "4bit" (bitsandbytes); "int8" (weights only) or "fp8"
                (weights and activations, on Ada, Hopper and later), through torchao; or a
                quantization config of transformers.
            adapter: name or path of a PEFT adapter to put on the model.
            revision: of the model on the hub.
            model_kwargs: for `AutoModelForCausalLM.from_pretrained`.

        Raises:
            ValueError: unknown `quantization`.
            ImportError: the library that it needs is not installed.
            OSError: there is no such model.
        """
        from transformers import AutoModelForCausalLM

        if quantization is not None:
            model_kwargs["quantization_config"] = quantization_config(quantization)
        if device is None:
            device = default_device()
        model_kwargs.setdefault("device_map", {"": device})
        with without_zero3():
            model: nn.Module = AutoModelForCausalLM.from_pretrained(
                name_or_path, dtype=dtype, revision=revision, **model_kwargs
            )
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, os.fspath(adapter))  # type: ignore[arg-type]
        return cls(model, load_tokenizer(name_or_path, revision))

    @classmethod
    def shared(
        cls, trainee: nn.Module, adapter: str | None = None, *, tokenizer: Any = None
    ) -> Prior:
        """Score with the frozen base of the model in training: no second copy of its weights.

        While it scores, the trainee's adapters are off (or only the frozen one called `adapter` is
        on) and the model is in eval mode; afterwards everything is as before.

        Args:
            trainee: the model that a `Trainer` gets or made (`trainer.model`): a PEFT model, or
                one that becomes one before training begins.
            adapter: name of a frozen adapter to score with; None: the bare base.
            tokenizer: of the trainee; None: the collator sets it.

        Raises:
            TypeError: `adapter` is no name.
            ValueError: the trainee trains weights that the prior scores with, or has no such
                adapter. For a model without an adapter yet, the first batch raises.
        """
        if not isinstance(adapter, str | None):
            raise TypeError(
                f"adapter must be the name of a frozen adapter or None, got a "
                f"{type(adapter).__name__}; a tokenizer is passed as tokenizer=..."
            )
        if getattr(trainee, "peft_config", None) or adapter is not None:
            names = adapter_names(trainee)
            if adapter is not None and adapter not in names:
                raise ValueError(
                    f"adapter {adapter!r} is not in the model, which has {sorted(names) or 'none'}"
                    "; load it with model.load_adapter(path, adapter_name=..., is_trainable=False)"
                )
            check_base_is_frozen(trainee, adapter)
        prior = cls.__new__(cls)
        ModelPrior.__init__(prior, trainee, tokenizer, shared=True, adapter=adapter)
        return prior

    def aligned_to(self, tokenizer: Any) -> BasePrior:
        """This prior for a trainee with another tokenizer; itself where both have the same.

        Scores then are lower bounds, and tokens that begin inside one of the prior's are left
        alone: see `AlignedPrior`.

        Args:
            tokenizer: of the trainee: byte-level BPE, or SentencePiece with byte fallback, as the
                prior's own must be.

        Raises:
            ValueError: a tokenizer is of another kind, or the prior has none.
        """
        own = self.tokenizer
        if own is not None and not tokenizer_difference(tokenizer, own, self.vocab_size):
            return self
        return AlignedPrior(self, tokenizer)

    def swap(self, source: str | os.PathLike[str] | Mapping[str, Tensor]) -> None:
        """Take over the weights of a checkpoint, in place: all or nothing.

        Everything is checked first. A checkpoint that is missing, half-written, not finite, or of
        another shape or configuration leaves the prior as it was. Only safetensors are read. A
        state dict has no configuration, so one of another model with the same shapes is accepted.

        Args:
            source: a folder with `model.safetensors`, its shards, or `adapter_model.safetensors`;
                or a state dict of the model or of its adapter.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: it can't be used.
            RuntimeError: reading failed halfway; the prior can't be used until a swap succeeds.
        """
        self.complete_swap(self.prepare_swap(source))

    def prepare_swap(self, source: str | os.PathLike[str] | Mapping[str, Tensor]) -> PreparedSwap:
        """The first half of `swap`: check everything, so that several ranks can agree on it."""
        source = source if isinstance(source, Mapping) else Path(source)
        return prepare_swap(self.model, source, shared=self.is_shared, adapter=self.adapter)

    def complete_swap(self, prepared: PreparedSwap) -> None:
        """The second half of `swap`: copy the weights."""
        try:
            prepared.copy()
        except Exception as error:  # a disk fails: everything was checked
            prepared.discard()
            if not prepared.replaces:
                raise ValueError(
                    f"a new adapter could not be copied ({error}); the old prior is kept"
                ) from error
            self._problem = (
                f"a swap of the prior failed while weights were copied ({error}), so the prior may "
                "have weights of both; load it again, or swap in a complete checkpoint"
            )
            raise RuntimeError(self._problem) from error
        self._problem = ""
        self.model, self.adapter = prepared.model, prepared.adapter
        self.generation += 1
        self._fingerprint = None
        logger.info("prior swapped; it now is of generation %d", self.generation)
