"""`toedit sft`: TRL's own SFT script, with all of its options, on token-edited batches."""

from .options import add_sft

__all__ = ["add_sft"]
