"""Loads a prior from the hub or from a folder."""

from __future__ import annotations

import logging
import os
from typing import Any, Literal, get_args

import torch

from ..errors import first_line

logger = logging.getLogger("toedit_collate")

Quantization = Literal["8bit", "4bit", "int8", "fp8"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)


def default_device() -> torch.device:
    """This process's GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
    return torch.device("cpu")


def quantization_config(quantization: Any) -> Any:
    """The quantization config of transformers for a name; other objects are returned as given."""
    if quantization == "8bit":
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_8bit=True)
    if quantization == "4bit":
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    if quantization in ("int8", "fp8"):
        from torchao import quantization as torchao  # type: ignore[import-not-found]
        from transformers import TorchAoConfig

        if quantization == "int8":
            return TorchAoConfig(torchao.Int8WeightOnlyConfig())
        by_row = torchao.Float8DynamicActivationFloat8WeightConfig(granularity=torchao.PerRow())
        return TorchAoConfig(by_row)
    if isinstance(quantization, str):
        raise ValueError(
            "quantization must be None, '8bit', '4bit', 'int8', 'fp8' or a quantization config of "
            f"transformers, got {quantization!r}"
        )
    return quantization


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
