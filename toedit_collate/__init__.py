"""Token editing (ToEdit) of training batches, on the fly, by a frozen prior model."""

from typing import TYPE_CHECKING, Any

from .batch import ToEditBatch
from .cache import DecisionCache
from .collator import ToEditCollator
from .editing import edit_tokens
from .journal import Journal
from .policy import EditPolicy
from .prior import Prior
from .token_batch import EditResult

if TYPE_CHECKING:
    from .callback import ToEditCallback, attach
    from .generations import format_reports, self_edit

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
    "self_edit",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # transformers' callbacks import PEFT and datasets where those are installed: seconds that
    # someone who only edits tensors need not wait.
    if name in ("ToEditCallback", "attach"):
        from . import callback

        return getattr(callback, name)
    if name in ("format_reports", "self_edit"):
        from . import generations

        return getattr(generations, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
