"""Token editing (ToEdit) of training batches, on the fly, by a frozen prior model."""

import importlib
from typing import TYPE_CHECKING, Any

from .editing.edit import edit_tokens
from .policy import EditPolicy
from .prior.prior import Prior
from .stores.cache import DecisionCache
from .stores.journal import Journal
from .tokens.result import EditResult
from .training.checkpoints import last_checkpoint
from .training.collator import ToEditCollator
from .training.lazy_batch import ToEditBatch

if TYPE_CHECKING:
    from .diagnostics.inspecting import inspect_edits
    from .training.attach import attach
    from .training.callback import ToEditCallback
    from .training.generations import format_reports, self_edit

__all__ = [
    "DecisionCache",
    "EditPolicy",
    "EditResult",
    "Journal",
    "Prior",
    "ToEditBatch",
    "ToEditCallback",
    "ToEditCollator",
    "attach",
    "edit_tokens",
    "format_reports",
    "inspect_edits",
    "last_checkpoint",
    "self_edit",
]
__version__ = "0.1.0"

# Imported when first asked for. transformers' callbacks import PEFT and datasets where those are
# installed: seconds that someone who only edits tensors need not wait.
_LAZY = {
    "ToEditCallback": ".training.callback",
    "attach": ".training.attach",
    "format_reports": ".training.generations",
    "inspect_edits": ".diagnostics.inspecting",
    "self_edit": ".training.generations",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
