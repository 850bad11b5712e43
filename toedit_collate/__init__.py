"""Token editing (ToEdit) of training batches, on the fly, by a frozen prior model."""

from .batch import ToEditBatch
from .callback import ToEditCallback, attach
from .collator import ToEditCollator
from .editing import EditResult, edit_tokens
from .policy import EditPolicy
from .prior import Prior

__all__ = [
    "EditPolicy",
    "EditResult",
    "Prior",
    "ToEditBatch",
    "ToEditCallback",
    "ToEditCollator",
    "attach",
    "edit_tokens",
]
__version__ = "0.1.0"
