"""Loads a prior from the hub or from a folder."""

from __future__ import annotations

import logging
import os
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..errors import first_line

logger = logging.getLogger("toedit_collate")

Quantization = Literal["8bit", "4bit", "int8", "fp8"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)


def put_adapter(model: nn.Module, adapter: str | os.PathLike[str]) -> nn.Module:
    """Put a PEFT adapter on a model; raises an ImportError without PEFT."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(
            f"adapter={adapter!r} needs PEFT ({error}); "
            'pip install "toedit_collate[recipes]", or peft alone'
        ) from error
    return PeftModel.from_pretrained(model, adapter)  # type: ignore[arg-type]


def default_device() -> torch.device:
    """This process's GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
    return torch.device("cpu")


def quantization_config(quantization: Any) -> Any:
    """The quantization config of transformers for a name; other objects are returned as given."""
    if not isinstance(quantization, str):
        return quantization
    if quantization in ("8bit", "4bit"):
        from transformers import BitsAndBytesConfig

        if quantization == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    if quantization in ("int8", "fp8"):
        from transformers import TorchAoConfig

        return TorchAoConfig(_torchao_config(quantization))
    raise ValueError(
        f"quantization must be None, '8bit', '4bit', 'int8', 'fp8' or a quantization config of "
        f"transformers, got {quantization!r}"
    )


def _torchao_config(quantization: str) -> Any:
    try:
        from torchao.quantization import (  # type: ignore[import-not-found]
            Float8DynamicActivationFloat8WeightConfig,
            Int8WeightOnlyConfig,
            PerRow,
        )
    except ImportError:
        raise ImportError(
            f"quantization={quantization!r} needs torchao; pip install torchao, or use '8bit'"
        ) from None
    if quantization == "int8":
        return Int8WeightOnlyConfig()
    if not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)):
        raise ValueError(
            "quantization='fp8' needs a GPU of compute capability 8.9 or newer (Ada, Hopper); use "
            "'int8' or '8bit'"
        )
    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())


def load_tokenizer(name_or_path: str | os.PathLike[str], revision: str | None) -> Any:
    """The tokenizer of a model; None, with a warning, if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name_or_path, revision=revision)
    except (OSError, ValueError) as error:
        logger.warning(
            "no tokenizer found for the prior %s (%s), so special tokens can't be protected; pass "
            "tokenizer= to ToEditCollator",
            name_or_path,
            first_line(error),
        )
        return None
