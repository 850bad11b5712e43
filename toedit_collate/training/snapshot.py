"""The weights of a model in training, and a prior saved to disk."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..prior.adapters import active_adapter, parameters_used
from ..prior.families import unwrap_model
from ..prior.prior import Prior
from ..prior.sharding import full_tensor, is_sharded
from ..prior.swap import adapter_weights

_WRAPPERS = (
    "DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "DeepSpeedEngine",
)  # fmt: skip


class LiveWeights(Mapping[str, Tensor]):
    """The weights that a trainee trains, with the names that they have in a checkpoint.

    These are the weights of its active adapter, whose configuration is `peft_config`, or all
    weights of the model if it has no adapter. Nothing is copied. A sharded weight is gathered when
    it is read (a collective: all ranks must read the same weights in the same order).
    """

    def __init__(self, trainee: Any) -> None:
        model = unwrap_wrappers(trainee)
        name = active_adapter(model)
        self.peft_config = None if name is None else model.peft_config[name]
        self.config = unwrap_model(model).config
        self._tensors = _weights_of(model, name)

    def __getitem__(self, name: str) -> Tensor:
        return full_tensor(self._tensors[name]).detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def save_prior(prior: Prior, folder: Path, *, writes: bool) -> None:
    """Save a prior's weights for `Prior.swap`, on the rank that `writes`: all or nothing.

    The weights of an adapter are saved as an adapter. An existing folder is not changed. With
    sharded weights it is a collective.
    """
    model: Any = prior.model
    name = prior.adapter if prior.is_shared else active_adapter(model)
    sharded = is_sharded(model)
    if not (writes or sharded):
        return
    state: Any = None
    if name is not None or sharded:  # all ranks gather the weights
        state = {
            weight: full_tensor(tensor).detach().cpu().contiguous()
            for weight, tensor in _weights_of(model, name).items()
        }
    if not writes or folder.exists():
        return
    with new_folder(folder) as unfinished:
        if name is None:
            unwrap_model(model).save_pretrained(unfinished, state_dict=state)
        else:
            from safetensors.torch import save_file

            save_file(state, unfinished / "adapter_model.safetensors", {"format": "pt"})
            model.peft_config[name].save_pretrained(str(unfinished))


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Write a folder all or nothing: yields the place of its files, and renames that at the end."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    unfinished.rename(folder)


def link_folder(source: Path, target: Path) -> None:
    """Hard-link a folder's files into a new folder, or copy them where links fail."""
    if target.exists() or not source.exists():
        return
    with new_folder(target) as unfinished:
        shutil.copytree(source, unfinished, copy_function=_link_or_copy, dirs_exist_ok=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def unwrap_wrappers(model: Any) -> Any:
    """A model without the wrappers of DDP, FSDP, torch.compile and DeepSpeed, in any order.

    accelerate's `extract_model_from_parallel` fails (1.11) if only an inner module is compiled.
    """
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif type(model).__name__ in _WRAPPERS:
            model = model.module
        else:
            return model


def _weights_of(model: Any, adapter: str | None) -> dict[str, Tensor]:
    if adapter is not None:
        return adapter_weights(model, adapter)
    # keep_vars: the parameters themselves, which know how they are sharded.
    return unwrap_model(model).state_dict(keep_vars=True)


def own_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """A model's weights without those of adapters, by their names without PEFT."""
    own = {id(parameter) for parameter in parameters_used(model, None)}
    return {
        re.sub(r"\.(base_layer|original_module|token_adapter)(?=\.)", "", name): parameter
        for name, parameter in unwrap_model(model).named_parameters()
        if id(parameter) in own
    }
