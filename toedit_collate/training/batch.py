"""ToEditBatch: a collated batch that is edited when it is moved to its device, or first read."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .call_site import CallSite, Origin, Purpose, inspect_call_stack
from .editor import BatchEditor, find_editor


class ToEditBatch(UserDict[str, Any]):
    """A batch that nobody can read unedited by accident.

    It is collated in a DataLoader worker, where there is no prior, and edits itself in the main
    process: when accelerate (and so a `Trainer`) moves it with `.to(device, non_blocking=...)`, or
    when it is first read. Batches of evaluation and prediction are not edited. Afterwards it is a
    plain mapping that can be used like transformers' `BatchEncoding`: `batch.input_ids` is
    `batch["input_ids"]`, `batch[:2]` has two rows of each tensor, `batch.data` is a dict.

    Args:
        data: the collated tensors.
        editor: the `BatchEditor`, or the key of one in another process; None: `data` is final.
        origin: where it was collated.

    Example:
        >>> batch = ToEditBatch({"input_ids": torch.tensor([[5, 6], [7, 8]])})
        >>> ({"weight": torch.ones(2)} | batch)[:1]
        {'weight': tensor([1.]), 'input_ids': tensor([[5, 6]])}
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        editor: BatchEditor | str | None = None,
        origin: Origin | None = None,
    ) -> None:
        self._data: dict[str, Any] = dict(data or {})
        self._pending_on = editor
        self._origin = Origin() if origin is None else origin

    @property
    def is_pending(self) -> bool:
        """Whether it is not decided yet that the batch is edited, or that it is for evaluation."""
        return self._pending_on is not None

    @property
    def data(self) -> dict[str, Any]:  # type: ignore[override]
        """The tensors, edited. `UserDict` reads and writes through this property alone."""
        if self._pending_on is not None:
            site = inspect_call_stack()
            # The dispatching loader reads batches to concatenate them, even those that it skips.
            # PyTorch 2.6 pins each item of a mapping before it looks for our `pin_memory`.
            if not (site.pinning or (site.dispatching and site.skipping)):
                self._resolve(site)
        return self._data

    @data.setter
    def data(self, data: dict[str, Any]) -> None:
        self._data, self._pending_on = data, None

    def to(self, device: str | torch.device | int, *, non_blocking: bool = False) -> ToEditBatch:
        """Edit the batch, unless it is for evaluation, and move it; returns itself.

        A batch that a resumed run skips is moved unedited, and edited if someone reads it later.
        """
        if self._pending_on is not None:
            site = inspect_call_stack()
            if not site.skipping:
                # A number is an index of the accelerator.
                is_number = isinstance(device, int)
                target = torch.zeros(0).to(device).device if is_number else torch.device(device)
                self._resolve(site, target)
        self._data = {
            key: value.to(device, non_blocking=non_blocking) if hasattr(value, "to") else value
            for key, value in self._data.items()
        }
        return self

    def pin_memory(self) -> ToEditBatch:
        """Pin the memory of all tensors, unedited (this runs in a thread of the DataLoader)."""
        self._data = {
            key: value.pin_memory() if isinstance(value, Tensor) else value
            for key, value in self._data.items()
        }
        return self

    def _resolve(self, site: CallSite, device: torch.device | None = None) -> None:
        """Decide whether the batch is for training or evaluation, and edit it for training."""
        editor = self._pending_on
        assert editor is not None
        if get_worker_info() is not None:
            raise RuntimeError(
                "a ToEditBatch was read in a DataLoader worker, where there is no prior; read it "
                "in the main process (do further collating in base_collator)"
            )
        if isinstance(editor, str):
            editor = find_editor(editor)
        purpose = self._origin.purpose
        if purpose is not Purpose.TRAINING and site.purpose is not Purpose.UNKNOWN:
            purpose = site.purpose
        if purpose is not Purpose.EVALUATION:
            self._data = editor.edit(self._data, self._origin, site, device)
        self._data.pop("edit", None)  # the model has no such argument
        self._pending_on = None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return {name: value[key] for name, value in self.data.items()}
        return self.data[key]

    def __getattr__(self, name: str) -> Any:
        # Only for names that are keys: hasattr() must be safe, in workers too.
        data = self.__dict__.get("_data", {})
        if name in data:
            return self[name]
        raise AttributeError(f"{type(self).__name__} has no attribute and no key {name!r}")

    def __repr__(self) -> str:
        state = "not yet edited" if self.is_pending else "final"
        return f"{type(self).__name__}({', '.join(self._data)}; {state})"

    def __reduce__(self) -> tuple[Any, ...]:
        # From a worker to the main process: unedited, with the key of its editor.
        editor = self._pending_on
        return type(self), (self._data, getattr(editor, "key", editor), self._origin)

    def __copy__(self) -> ToEditBatch:
        return type(self)(self._data, self._pending_on, self._origin)
