"""Token editing (ToEdit) of training batches, on the fly, by a frozen prior model."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .editing.edit import edit_tokens
    from .head.soft_labels import soft_cross_entropy
    from .inspection.inspecting import inspect_edits
    from .policy import EditPolicy
    from .prior.prior import Prior
    from .stores.cache import DecisionCache
    from .stores.journal import Journal
    from .tokens.result import EditResult
    from .training.attach import attach
    from .training.batch import ToEditBatch
    from .training.callback import ToEditCallback
    from .training.checkpoints import last_checkpoint
    from .training.collator import ToEditCollator
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
    "soft_cross_entropy",
]

# Imported when first asked for: torch takes seconds, in which Ctrl-C should already end the
# `toedit` command in a line, and transformers' callbacks import PEFT and datasets where those are
# installed.
_HOMES = {
    "DecisionCache": ".stores.cache",
    "EditPolicy": ".policy",
    "EditResult": ".tokens.result",
    "Journal": ".stores.journal",
    "Prior": ".prior.prior",
    "ToEditBatch": ".training.batch",
    "ToEditCallback": ".training.callback",
    "ToEditCollator": ".training.collator",
    "attach": ".training.attach",
    "edit_tokens": ".editing.edit",
    "format_reports": ".training.generations",
    "inspect_edits": ".inspection.inspecting",
    "last_checkpoint": ".training.checkpoints",
    "self_edit": ".training.generations",
    "soft_cross_entropy": ".head.soft_labels",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version(__name__)
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
