"""Token editing (ToEdit) of training batches, on the fly, by a frozen prior model."""

from typing import TYPE_CHECKING, Any

from .editing.edit import edit_tokens
from .policy import EditPolicy
from .prior.prior import Prior
from .stores.cache import DecisionCache
from .stores.journal import Journal
from .tokens.result import EditResult
from .training.collator import ToEditCollator
from .training.lazy_batch import ToEditBatch

if TYPE_CHECKING:
    from .diagnostics.inspecting import inspect_edits
    from .training.callback import ToEditCallback, attach
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
    "self_edit",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # transformers' callbacks import PEFT and datasets where those are installed: seconds that
    # someone who only edits tensors need not wait.
    if name in ("ToEditCallback", "attach"):
        from .training import callback

        return getattr(callback, name)
    if name in ("format_reports", "self_edit"):
        from .training import generations

        return getattr(generations, name)
    if name == "inspect_edits":
        from .diagnostics.inspecting import inspect_edits

        return inspect_edits
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
