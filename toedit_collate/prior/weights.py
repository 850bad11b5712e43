"""Reads the tensors of a checkpoint, from a folder of safetensors or a state dict."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


class Weights:
    """The tensors of a checkpoint by name, read one at a time.

    Args:
        where: what messages call it.
        names: how to read each tensor.
        files: from which they are read.
    """

    def __init__(
        self, where: str, names: dict[str, Callable[[], Tensor]], files: Sequence[Path] = ()
    ) -> None:
        self.where = where
        self.names = names
        self.files = {path: _state_of(path) for path in files}

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.names[name]()
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"checkpoint {self.where} can't be read at {name!r} ({error}); is it still being "
                "written?"
            ) from error

    def renamed(self, change: Callable[[str], str]) -> Weights:
        """The same tensors by other names."""
        other = Weights(self.where, {change(name): read for name, read in self.names.items()})
        other.files = self.files
        return other

    def check_unchanged(self) -> None:
        """Raise a ValueError if a file has changed since it was opened; deleted ones stay open."""
        for path, before in self.files.items():
            if path.exists() and _state_of(path) != before:
                raise ValueError(
                    f"checkpoint file {path} was changed after it was checked; swap again when it "
                    "is complete"
                )


def _state_of(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def from_state(state: Mapping[str, Tensor]) -> Weights:
    """The tensors of a state dict, without the prefixes of DDP and torch.compile.

    Raises:
        TypeError: it holds something else.
        ValueError: a tensor has no dense values.
    """
    names: dict[str, Callable[[], Tensor]] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(
                f"a state dict must hold tensors by name, got {type(tensor).__name__} for "
                f"{name!r}; pass model.state_dict()"
            )
        if tensor.is_meta or tensor.layout != torch.strided:
            raise ValueError(
                f"state dict: {name!r} is a tensor of device {tensor.device} and layout "
                f"{tensor.layout}, which can't be copied; pass one with dense values"
            )
        names[name.removeprefix("_orig_mod.").removeprefix("module.")] = tensor.detach
    return Weights("state dict", names)


def from_folder(folder: Path) -> Weights:
    """The tensors of a saved model or adapter, whose files stay open.

    Raises:
        FileNotFoundError: there is no such folder, or it has no safetensors.
        ValueError: a file is torn or missing.
    """
    if folder.is_file():
        raise FileNotFoundError(f"checkpoint {folder} is a file; pass the folder that it is in")
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
                f"checkpoint file {path} is not a complete safetensors file ({error}); is it "
                "still being written?"
            ) from error
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            names[name] = partial(opened.get_tensor, name)
    return Weights(str(folder), names, files)


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = dict(json.loads(index.read_text())["weight_map"]).values()
        files = sorted({folder / Path(name).name for name in names})
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint index {index} is not readable ({error!r})") from error
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise ValueError(f"checkpoint {folder} lacks the shards {absent}; is it being written?")
    return files


def holds_adapter(weights: Weights) -> bool:
    """Whether these are the weights of an adapter alone."""
    return any("lora_" in name or name.startswith("base_model.") for name in weights.names)
