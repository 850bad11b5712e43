"""ToEditBatch: a collated batch that is edited when it is moved to its device, or first read."""

from __future__ import annotations

import weakref
from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .call_site import Surroundings, look_around


@dataclass(frozen=True)
class Origin:
    """What a collator knows of a batch when it makes it, in a worker or not.

    Attributes:
        for_training: True in the loader that is known to train; False in another loader of a
            Trainer whose training loader is known; None: the loop that reads the batch tells.
        pad_to_multiple_of: rows that shrink are padded again to such a length; None: to the
            longest.
        prepared: what a worker has worked out for the prior, by the content of documents: their
            tokens for a prior with another tokenizer. None: nothing.
    """

    for_training: bool | None = None
    pad_to_multiple_of: int | None = None
    prepared: Any = field(default=None, repr=False, compare=False)


class Editor(Protocol):
    """What edits a batch: a `BatchEditor`."""

    key: str

    def edit(
        self,
        batch: dict[str, Any],
        origin: Origin,
        where: Surroundings,
        device: torch.device | None = None,
    ) -> dict[str, Any]:
        """The batch as it is to be read there; `device` is where it will be moved then."""


# Batches and collators come back from other processes with the key of their editor. Weak: an
# editor that nobody uses any more must not keep its prior on the GPU.
_EDITORS: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def register_editor(editor: Editor) -> None:
    """Let batches and collators that come from another process find their editor."""
    _EDITORS[editor.key] = editor


def registered_editor(key: str) -> Any:
    """The editor of that key, if it lives in this process; else None."""
    return _EDITORS.get(key)


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
        editor: Editor | str | None = None,
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
            where = look_around()
            # The dispatching loader reads batches to glue them together, those it skips too.
            # PyTorch 2.6 pins a mapping item by item, before it asks for our own `pin_memory`.
            if not (where.pinning or (where.dispatching and where.skipping)):
                self._edit(where)
        return self._data

    @data.setter
    def data(self, data: dict[str, Any]) -> None:
        self._data, self._pending_on = data, None

    def to(self, device: str | torch.device | int, *, non_blocking: bool = False) -> ToEditBatch:
        """Edit the batch, unless it is for evaluation, and move it; returns itself.

        A batch that a resumed run skips is moved only: it is edited if someone reads it after all.
        """
        if self._pending_on is not None:
            where = look_around()
            if not where.skipping:
                self._edit(where, _as_device(device))
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

    def _edit(self, where: Surroundings, device: torch.device | None = None) -> None:
        assert self._pending_on is not None
        editor = _find_editor(self._pending_on)
        self._data = editor.edit(self._data, self._origin, where, device)
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


def _find_editor(pending_on: Editor | str) -> Editor:
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
