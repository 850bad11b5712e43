"""Token editing (ToEdit) of training batches, on the fly, by a frozen prior model."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .editing.edit import edit_tokens as edit_tokens
    from .head.soft_labels import soft_cross_entropy as soft_cross_entropy
    from .inspection.inspecting import inspect_edits as inspect_edits
    from .policy import EditPolicy as EditPolicy
    from .prior.prior import Prior as Prior
    from .stores.cache import DecisionCache as DecisionCache
    from .stores.journal import Journal as Journal
    from .tokens.result import EditResult as EditResult
    from .training.batch import ToEditBatch as ToEditBatch
    from .training.callback import ToEditCallback as ToEditCallback
    from .training.callback import attach as attach
    from .training.checkpoints import last_checkpoint as last_checkpoint
    from .training.collator import ToEditCollator as ToEditCollator
    from .training.generations import format_reports as format_reports
    from .training.generations import self_edit as self_edit

# Names are imported on first use. Importing torch takes seconds, in which Ctrl-C should already
# end the `toedit` command cleanly, and transformers' callbacks import PEFT and datasets if they are
# installed.
_MODULES = {
    "DecisionCache": ".stores.cache",
    "EditPolicy": ".policy",
    "EditResult": ".tokens.result",
    "Journal": ".stores.journal",
    "Prior": ".prior.prior",
    "ToEditBatch": ".training.batch",
    "ToEditCallback": ".training.callback",
    "ToEditCollator": ".training.collator",
    "attach": ".training.callback",
    "edit_tokens": ".editing.edit",
    "format_reports": ".training.generations",
    "inspect_edits": ".inspection.inspecting",
    "last_checkpoint": ".training.checkpoints",
    "self_edit": ".training.generations",
    "soft_cross_entropy": ".head.soft_labels",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version(__name__)
    if name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
