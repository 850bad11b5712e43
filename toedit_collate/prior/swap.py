"""Taking over the weights of a checkpoint, in place: all or nothing, and only from safetensors."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .adapters import adapter_names
from .families import unwrap_model
from .sharding import copy_into, storage_of

SHARED_ADAPTER = "toedit_prior"


class _Weights:
    """The tensors of a checkpoint by name, read one at a time."""

    def __init__(self, where: str, names: dict[str, Callable[[], Tensor]]) -> None:
        self.where = where
        self.names = names

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.names[name]()
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"checkpoint {self.where} can't be read at {name!r} ({error}); is it still being "
                "written?"
            ) from error


@dataclass(frozen=True)
class PreparedSwap:
    """A checkpoint that was checked, and is not copied yet.

    Attributes:
        model: the prior's model, wrapped by PEFT if an adapter comes to it.
        adapter: name of the adapter with which a shared prior is to score.
        copy: writes the weights into the model; a collective where it is sharded over ranks.
        discard: leaves the model as it was.
    """

    model: nn.Module
    adapter: str | None
    copy: Callable[[], None]
    discard: Callable[[], Any]


def prepare_swap(
    model: nn.Module, source: Path | Mapping[str, Tensor], *, shared: bool, adapter: str | None
) -> PreparedSwap:
    """Check all of a checkpoint, to copy it into a prior's model; see `Prior.swap`."""
    weights = _from_state(source) if isinstance(source, Mapping) else _from_folder(source)
    if _holds_adapter(weights):
        return _prepare_adapter(model, source, weights, shared=shared, adapter=adapter)
    if shared:
        raise ValueError(
            f"checkpoint {weights.where} holds full weights, but this prior shares its base with "
            "the trainee; swap in an adapter, or use a separate prior"
        )
    copy_all = _prepare_full(unwrap_model(model), source, weights)
    return PreparedSwap(model, None, copy_all, discard=partial(_same, None))


def _same(thing: Any) -> Any:
    return thing


def _from_state(state: Mapping[str, Tensor]) -> _Weights:
    def plain(name: str) -> str:
        for prefix in ("_orig_mod.", "module."):
            name = name.removeprefix(prefix)
        return name

    return _Weights("state dict", {plain(name): partial(state.__getitem__, name) for name in state})


def _from_folder(folder: Path) -> _Weights:
    if not folder.is_dir():
        raise FileNotFoundError(f"checkpoint folder {folder} does not exist")
    for index in ("model.safetensors.index.json", "adapter_model.safetensors.index.json"):
        if (folder / index).is_file():
            files = _shards(folder, folder / index)
            break
    else:
        candidates = [folder / "model.safetensors", folder / "adapter_model.safetensors"]
        files = [path for path in candidates if path.is_file()][:1]
    if not files:
        raise FileNotFoundError(
            f"checkpoint {folder} has no model.safetensors, no adapter_model.safetensors and no "
            "index of shards; only safetensors are read: save with save_pretrained"
        )
    names: dict[str, Callable[[], Tensor]] = {}
    for path in files:
        try:
            opened = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"checkpoint file {path} is not a whole safetensors file ({error}); is it still "
                "being written?"
            ) from error
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            names[name] = partial(opened.get_tensor, name)
    return _Weights(str(folder), names)


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"checkpoint index {index} is not readable ({error!r})") from error
    files = sorted({folder / Path(name).name for name in weight_map.values()})
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise ValueError(f"checkpoint {folder} lacks the shards {absent}; is it being written?")
    return files


def _holds_adapter(weights: _Weights) -> bool:
    return any("lora_" in name or name.startswith("base_model.") for name in weights.names)


def _prepare_full(
    lm: Any, source: Path | Mapping[str, Tensor], weights: _Weights
) -> Callable[[], None]:
    # state_dict() returns the tensors themselves; PEFT layers keep theirs under `base_layer`.
    target = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in lm.state_dict().items()
        if "lora_" not in name
    }
    if isinstance(source, Path) and not set(target) >= set(weights.names):
        # Families whose files name their weights otherwise than the model does (fused experts,
        # say): let transformers do the conversion, on the CPU.
        weights = _converted(lm, source)
    _check_names(target, weights)
    return _checked(target, weights)


def _converted(lm: Any, folder: Path) -> _Weights:
    try:
        loaded, info = type(lm).from_pretrained(
            folder, dtype="auto", output_loading_info=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"checkpoint {folder} can't be loaded: {error}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(problem):
            raise ValueError(
                f"checkpoint {folder} does not fit the prior: {problem} "
                f"{sorted(map(str, info[problem]))[:3]}; it must be of the prior's architecture"
            )
    return _Weights(str(folder), {n: partial(_same, t) for n, t in loaded.state_dict().items()})


def _check_names(target: dict[str, Tensor], weights: _Weights) -> None:
    unexpected = sorted(set(weights.names) - set(target))
    present = {storage_of(target[name]) for name in weights.names if name in target}
    # A tied weight is saved once, under one of its names.
    missing = sorted(
        name
        for name, tensor in target.items()
        if name not in weights.names and storage_of(tensor) not in present
    )
    if unexpected or missing:
        raise ValueError(
            f"checkpoint {weights.where} does not fit the prior: missing {missing[:3]}, unexpected "
            f"{unexpected[:3]}; it must be of the prior's architecture"
        )


def _checked(target: dict[str, Tensor], weights: _Weights) -> Callable[[], None]:
    """Read everything once to check it; returns what reads it once more to copy it."""
    for name in weights.names:
        tensor = weights[name]
        if tensor.shape != target[name].shape:
            raise ValueError(
                f"checkpoint {weights.where}: {name!r} has shape {tuple(tensor.shape)}, the "
                f"prior's has {tuple(target[name].shape)}; it must be of the same model"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"checkpoint {weights.where}: {name!r} is not finite; training has diverged, so "
                "the old prior is kept"
            )

    def copy_all() -> None:
        with torch.no_grad():
            for name in weights.names:
                copy_into(target[name], weights[name])

    return copy_all


def _prepare_adapter(
    model: Any,
    source: Path | Mapping[str, Tensor],
    weights: _Weights,
    *,
    shared: bool,
    adapter: str | None,
) -> PreparedSwap:
    name = (adapter or SHARED_ADAPTER) if shared else getattr(model, "active_adapter", "default")
    discard: Callable[[], Any] = partial(_same, None)
    if name not in adapter_names(model):
        model, discard = _add_empty_adapter(model, _adapter_config(source), name, shared=shared)
    # In memory, the name of an adapter stands in the names of its weights; in files it does not.
    target = adapter_weights(model, name)
    plain = _Weights(
        weights.where, {key.replace(".default", ""): read for key, read in weights.names.items()}
    )
    try:
        if set(plain.names) != set(target):
            raise ValueError(
                f"the adapter of {weights.where} does not fit the prior's adapter {name!r}: they "
                f"differ in {sorted(set(plain.names) ^ set(target))[:3]}"
            )
        copy_all = _checked(target, plain)
    except ValueError:
        discard()
        raise
    return PreparedSwap(model, name if shared else None, copy_all, discard)


def adapter_weights(model: Any, adapter: str) -> dict[str, Tensor]:
    """The parameters of an adapter, under the names that they have in its checkpoint.

    They are the parameters themselves, which know how they are spread over ranks.
    """
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(
        model,
        state_dict=model.state_dict(keep_vars=True),
        adapter_name=adapter,
        save_embedding_layers=False,
    )


def _adapter_config(source: Path | Mapping[str, Tensor]) -> Any:
    from peft import PeftConfig

    if isinstance(source, Path):
        try:
            return PeftConfig.from_pretrained(str(source))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"adapter {source} has no configuration ({error})") from error
    config = getattr(source, "peft_config", None)
    if config is None:
        raise ValueError(
            "the state dict of an adapter has no configuration, and the prior has no adapter to "
            "put it in; pass the folder of a saved adapter first"
        )
    return copy.deepcopy(config)


def _add_empty_adapter(
    model: Any, config: Any, name: str, *, shared: bool
) -> tuple[Any, Callable[[], Any]]:
    """Add a frozen adapter without effect.

    Returns:
        The model, and a function that takes the adapter away again.
    """
    from peft import get_peft_model

    if shared and not hasattr(model, "peft_config"):
        raise ValueError(
            "Prior.shared was given a model before PEFT was put on it, so that no second adapter "
            "can be added; share `trainer.model` instead"
        )
    config.inference_mode = True
    try:
        # Its weights are drawn at random, before they are overwritten; training must not notice.
        with _flags_kept(model), _random_state_kept(model):
            if hasattr(model, "peft_config"):
                model.add_adapter(name, config)
                return model, lambda: model.delete_adapter(name)
            wrapped = get_peft_model(model, config, adapter_name=name)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"the adapter can't be put on the prior: {error}") from error
    wrapped.eval().requires_grad_(False)
    return wrapped, wrapped.unload


def _random_state_kept(model: nn.Module) -> Any:
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)


@contextmanager
def _flags_kept(model: nn.Module) -> Iterator[None]:
    """Adding an adapter may put the model into eval mode, and change `requires_grad`."""
    training = [module for module in model.modules() if module.training]
    grads = {id(p): p.requires_grad for p in model.parameters()}
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in model.parameters():
            parameter.requires_grad = grads.get(id(parameter), False)
