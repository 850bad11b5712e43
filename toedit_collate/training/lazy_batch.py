"""ToEditBatch: a collated batch that is edited when it is moved to its device, or first read."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .call_site import Surroundings, look_around


class BatchEditor(Protocol):
    """What edits a batch: a `ToEditCollator`."""

    key: str

    def edit_collated(
        self, batch: dict[str, Any], where: Surroundings, device: torch.device | None = None
    ) -> dict[str, Any]:
        """The batch as it is to be read there; `device` is where it will be moved then."""


# Batches come back from workers with the key of their editor. Weak: a collator that is gone must
# not keep its prior on the GPU.
_EDITORS: weakref.WeakValueDictionary[str, BatchEditor] = weakref.WeakValueDictionary()


def register_editor(editor: BatchEditor) -> None:
    """Let batches that come from workers find their editor."""
    _EDITORS[editor.key] = editor


class ToEditBatch(MutableMapping[str, Any]):
    """A batch that nobody can read unedited by accident.

    It is collated in a DataLoader worker, where there is no prior, and edits itself in the main
    process: when accelerate (so, a `Trainer`) moves it with `.to(device, non_blocking=...)`, or
    when it is first read. Batches that a `Trainer` evaluates or predicts on are left as they are.
    From then on it is a plain mapping; `batch.input_ids` is `batch["input_ids"]`.

    Args:
        data: the collated tensors.
        editor: the `ToEditCollator` that edits it, or the key of one in another process; None:
            `data` is final.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        editor: BatchEditor | str | None = None,
    ) -> None:
        self._data: dict[str, Any] = dict(data or {})
        self._pending_on = editor

    @property
    def is_pending(self) -> bool:
        """True as long as the batch has been neither edited nor left for evaluation."""
        return self._pending_on is not None

    def to(self, device: str | torch.device | int, non_blocking: bool = False) -> ToEditBatch:
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

    def _settle(self) -> dict[str, Any]:
        if self._pending_on is not None:
            where = look_around()
            # The dispatching loader reads batches to glue them together, those it skips too.
            if not (where.dispatching and where.skipping):
                self._edit(where)
        return self._data

    def _edit(self, where: Surroundings, device: torch.device | None = None) -> None:
        assert self._pending_on is not None
        self._data = _find_editor(self._pending_on).edit_collated(self._data, where, device)
        self._pending_on = None

    def __getitem__(self, key: str) -> Any:
        return self._settle()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._settle()[key] = value

    def __delitem__(self, key: str) -> None:
        del self._settle()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settle())

    def __len__(self) -> int:
        return len(self._settle())

    def __contains__(self, key: object) -> bool:
        return key in self._settle()

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
        # From a worker to the main process: as collated, with the name of the collator.
        pending_on = self._pending_on
        if pending_on is not None and not isinstance(pending_on, str):
            pending_on = pending_on.key
        return type(self), (self._data, pending_on)

    def copy(self) -> dict[str, Any]:
        """The batch as a plain dict."""
        return dict(self._settle())


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
    editor = _EDITORS.get(pending_on)
    if editor is None:
        raise RuntimeError(
            "the ToEditCollator of this batch is gone, or lives in another process; keep a "
            "reference to it while its batches are in use"
        )
    return editor
