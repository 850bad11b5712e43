"""ToEditBatch: a collated batch that is edited when it is moved to its device, or first read."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .call_site import CallSite, Origin, Purpose, inspect_call_stack
from .editor import BatchEditor, registered_editor


class ToEditBatch(UserDict[str, Any]):
    """A batch that nobody can read unedited by accident.

    It is collated in a DataLoader worker, where there is no prior, and edits itself in the main
    process: when accelerate (so, a `Trainer`) moves it with `.to(device, non_blocking=...)`, or
    when it is first read. Batches of evaluation and prediction are left as they are. From then on
    it is a plain mapping that does what transformers' `BatchEncoding` does: `batch.input_ids` is
    `batch["input_ids"]`, `batch[:2]` has two rows of each, `batch.data` is a dict.

    Args:
        data: the collated tensors.
        editor: the `BatchEditor` that edits it, or the key of one in another process; None:
            `data` is final.
        origin: where it was collated.

    Example:
        >>> batch = ToEditBatch({"input_ids": torch.tensor([[5, 6], [7, 8]])})
        >>> ({"weight": torch.ones(2)} | batch)[:1]
        {'weight': tensor([1.]), 'input_ids': tensor([[5, 6]])}
    """

    # As BatchEncoding has them where the tokens did not come from a fast tokenizer.
    is_fast = False
    encodings = None
    n_sequences = None

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
        """True as long as the batch has been neither edited nor left for evaluation."""
        return self._pending_on is not None

    @property
    def data(self) -> dict[str, Any]:  # type: ignore[override]
        """What the batch holds, edited. `UserDict` reads and writes through this alone."""
        if self._pending_on is not None:
            site = inspect_call_stack()
            # The dispatching loader reads batches to concatenate them, even those it skips.
            # PyTorch 2.6 pins a mapping item by item, before it asks for our own `pin_memory`.
            if not (site.pinning or (site.dispatching and site.skipping)):
                self._resolve(site)
        return self._data

    @data.setter
    def data(self, data: dict[str, Any]) -> None:
        self._data, self._pending_on = data, None

    def to(self, device: str | torch.device | int, *, non_blocking: bool = False) -> ToEditBatch:
        """Edit the batch, unless it is for evaluation, and move it; returns itself.

        A batch that a resumed run skips is moved only: it is edited if someone reads it after all.
        """
        if self._pending_on is not None:
            site = inspect_call_stack()
            if not site.skipping:
                self._resolve(site, _as_device(device))
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
        """Edit the batch, or leave it for evaluation: here it is decided which."""
        assert self._pending_on is not None
        editor = _find_editor(self._pending_on)
        purpose = self._origin.purpose
        if purpose is not Purpose.TRAINING:
            purpose = site.purpose.or_else(purpose)
        if purpose is not Purpose.EVALUATION:
            self._data = editor.edit(self._data, self._origin, site, device)
        # The model has no argument of that name.
        self._data.pop("edit", None)
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
        # From a worker to the main process: as collated, with the name of its editor.
        pending_on = self._pending_on
        if pending_on is not None and not isinstance(pending_on, str):
            pending_on = pending_on.key
        return type(self), (self._data, pending_on, self._origin)

    def __copy__(self) -> ToEditBatch:
        return type(self)(self._data, self._pending_on, self._origin)

    def copy(self) -> ToEditBatch:
        """The batch, edited, with the same tensors."""
        return type(self)(self.data)

    def convert_to_tensors(
        self, tensor_type: Any = None, prepend_batch_axis: bool = False
    ) -> ToEditBatch:
        """Make tensors of lists, in place, as `BatchEncoding` does."""
        from transformers import BatchEncoding

        made = BatchEncoding(self.data).convert_to_tensors(tensor_type, prepend_batch_axis)
        self._data = dict(made)
        return self


def _as_device(device: str | torch.device | int) -> torch.device:
    """As tensors understand it: a number is one of the accelerator's."""
    return torch.zeros(0).to(device).device if isinstance(device, int) else torch.device(device)


def _find_editor(pending_on: BatchEditor | str) -> BatchEditor:
    """The editor of a batch: itself, or by the key that came from a worker.

    Raises:
        RuntimeError: in a DataLoader worker, or where the editor is gone.
    """
    if get_worker_info() is not None:
        raise RuntimeError(
            "a ToEditBatch was read in a DataLoader worker, where there is no prior; read it in "
            "the main process (do further collating in base_collator)"
        )
    if not isinstance(pending_on, str):
        return pending_on
    editor = registered_editor(pending_on)
    if editor is None:
        raise RuntimeError(
            "the ToEditCollator of this batch is gone, or lives in another process; keep a "
            "reference to it while its batches are in use"
        )
    return editor
