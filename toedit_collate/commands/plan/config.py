"""What of a recipe's config decides memory and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from ...config.arguments import DataArguments, EditArguments, RunArguments
from ...config.fields import read_fields, read_yaml
from ...config.options import DTYPES
from ...config.parse import check_names
from ...errors import UnusableError
from ...policy import PRESETS
from ...prior.loading import QUANTIZATIONS
from ..recipes import fields_of_recipes

_ON, _OFF = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class Lora:
    """LoRA, as TRL's `ModelConfig` names it."""

    rank: int
    targets: str | tuple[str, ...] | None
    modules_to_save: tuple[str, ...]
    dropout: float


@dataclass(frozen=True)
class RunConfig:
    """A recipe's config, as far as it matters here; defaults are those of TRL.

    Attributes:
        model: folder or hub id of the trainee.
        from_scratch: its config alone is taken (`config_name`).
        config_overrides: values of it to change.
        dtype: of the weights as they are loaded; "auto": the checkpoint's.
        autocast: matrix products are in 16 bits (`bf16`, `fp16`).
        quantization: of the trainee's frozen base: "4bit", "4bit nested", "8bit" or None.
        attention: `attn_implementation`; None: sdpa.
        B: rows of a batch on one GPU.
        T: tokens of a row, at most.
        accumulation: batches in a step.
        packing: "none" (rows are padded), "wrapped" (full rows) or "free" (one row per batch,
            with a mask between documents).
        checkpointing: layers keep their input alone.
        fused_head: TRL's loss, which never builds the logits.
        optimizer: `optim`.
        max_steps: None: not given.
        num_epochs: `num_train_epochs`.
        num_rows: of the data, where that is known (`dataset_limit`).
        generations: trainings one after another (`self_edit.py`).
        lora: None: all weights are trained.
        prior: "shared", a folder or hub id; None: no editing.
        prior_dtype: "auto": the checkpoint's.
        prior_quantization: one of `QUANTIZATIONS`, or None.
        decides_once: there is a decision cache: epochs after the first need no pass.
        fsdp: the config itself asks for FSDP.
    """

    model: str
    from_scratch: bool
    config_overrides: dict[str, Any]
    dtype: str
    autocast: bool
    quantization: str | None
    attention: str | None
    B: int
    T: int
    accumulation: int
    packing: str
    checkpointing: bool
    fused_head: bool
    optimizer: str
    max_steps: int | None
    num_epochs: float
    num_rows: int | None
    generations: int
    lora: Lora | None
    prior: str | None
    prior_dtype: str
    prior_quantization: str | None
    decides_once: bool
    fsdp: bool


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """All fields of a config, those of the command line on top.

    Args:
        path: of the YAML.
        overrides: `--field value ...`, as the recipes take them.

    Raises:
        UnusableError: the file can't be read or is no mapping, or a field is unknown.
    """
    values = {**read_yaml(path, "--config"), **read_fields(overrides)}
    check_names(values, {*_fields(), *fields_of_recipes(), "env"})
    return values


@cache
def _fields() -> dict[str, Any]:
    """The defaults of all fields that recipes have, by name; those of TRL are its own."""
    try:
        from trl import ModelConfig, SFTConfig
    except ImportError:
        raise UnusableError(
            'the plan reads the defaults of TRL; pip install "toedit_collate[recipes]"'
        ) from None
    classes = (SFTConfig, ModelConfig, RunArguments, DataArguments, EditArguments)
    return {one.name: one.default for kind in classes for one in fields(kind) if one.init}


def make_config(values: dict[str, Any]) -> RunConfig:
    """Check the fields that matter, and fill in the defaults; others are the trainer's own.

    Raises:
        UnusableError: a value can't be used, or no model is named.
    """
    model = values.get("config_name") or values.get("model_name_or_path")
    if not isinstance(model, str):
        raise UnusableError(
            "the config names no model; set model_name_or_path, or config_name to train from "
            "scratch, to a folder or a hub id"
        )
    lora = _lora(values) if _flag(values, "use_peft") else None
    fp16 = _flag(values, "fp16")
    overrides = values.get("config_overrides") or {}
    if not isinstance(overrides, dict):
        raise UnusableError(f"config_overrides must be a mapping, got {overrides!r}")
    policy = _one_of(values, "edit_policy", (*PRESETS, "none"))
    prior = None if policy == "none" else str(values.get("prior") or "shared")
    if prior == "shared" and lora is None:
        raise UnusableError(
            "prior is 'shared', the frozen base of a LoRA trainee, and this run trains all "
            "weights; name a prior by its folder or hub id, or set use_peft: true"
        )
    steps = _number(values, "max_steps", least=-1)
    return RunConfig(
        model=model,
        from_scratch="config_name" in values,
        config_overrides=overrides,
        dtype=_one_of(values, "dtype", DTYPES),
        autocast=fp16 or _flag(values, "bf16", not fp16),
        quantization=_quantization(values),
        attention=values.get("attn_implementation"),
        B=_whole(values, "per_device_train_batch_size"),
        T=_whole(values, "max_length"),
        accumulation=_whole(values, "gradient_accumulation_steps"),
        packing=_packing(values),
        checkpointing=_flag(values, "gradient_checkpointing"),
        fused_head=not _number(values, "label_smoothing_factor"),
        optimizer=str(values.get("optim", _fields()["optim"])),
        max_steps=int(steps) if steps > 0 else None,
        num_epochs=_number(values, "num_train_epochs"),
        num_rows=_whole(values, "dataset_limit"),
        generations=_whole(values, "generations", 1),
        lora=lora,
        prior=prior,
        prior_dtype=_one_of(values, "prior_dtype", DTYPES),
        prior_quantization=_one_of(values, "prior_quantization", (None, *QUANTIZATIONS)),
        decides_once=values.get("decision_cache") not in (None, False, "false", "False"),
        fsdp=values.get("fsdp") not in (None, False, "", [], "false", "False"),
    )


def _lora(values: dict[str, Any]) -> Lora:
    targets = values.get("lora_target_modules")
    if isinstance(targets, list):
        targets = targets[0] if len(targets) == 1 else tuple(targets)  # as TRL does
    saved = values.get("lora_modules_to_save") or ()
    return Lora(
        rank=_whole(values, "lora_r"),
        targets=targets,
        modules_to_save=(saved,) if isinstance(saved, str) else tuple(saved),
        dropout=_number(values, "lora_dropout"),
    )


def _quantization(values: dict[str, Any]) -> str | None:
    if _flag(values, "load_in_8bit"):
        return "8bit"
    if not _flag(values, "load_in_4bit"):
        return None
    return "4bit nested" if _flag(values, "use_bnb_nested_quant") else "4bit"


def _packing(values: dict[str, Any]) -> str:
    packs = _flag(values, "packing")
    strategy = values.get("packing_strategy", _fields()["packing_strategy"])
    if packs and strategy == "wrapped":
        return "wrapped"
    return "free" if packs or _flag(values, "padding_free") else "none"


def _flag(values: dict[str, Any], name: str, default: bool | None = None) -> bool:
    value = values.get(name)
    if value is None:
        return bool(_fields()[name] if default is None else default)
    text = str(value).lower()
    if text not in _ON + _OFF:
        raise UnusableError(f"{name} must be true or false, got {value!r}")
    return text in _ON


def _number(values: dict[str, Any], name: str, *, least: float = 0.0) -> float:
    value = values.get(name, _fields()[name])
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = least - 1
    if not number >= least:
        raise UnusableError(f"{name} must be a number from {least:g}, got {value!r}")
    return number


def _whole(values: dict[str, Any], name: str, default: int | None = None) -> Any:
    value = values.get(name)
    if value is None:
        if name in values and name == "max_length":
            raise UnusableError("max_length is null: rows of any length can't be planned; set it")
        return _fields()[name] if default is None else default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnusableError(f"{name} must be a whole number from 1, got {value!r}")
    return value


def _one_of(values: dict[str, Any], name: str, allowed: Sequence[Any]) -> Any:
    value = values.get(name)
    if value is None:
        return _fields()[name]
    if value not in allowed:
        names = ", ".join(str(one) for one in allowed if one is not None)
        raise UnusableError(f"{name} must be one of {names}, got {value!r}")
    return value
