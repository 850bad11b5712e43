"""`toedit inspect`: what edits would do to data, or did in a run with a journal."""

from .options import add_inspect

__all__ = ["add_inspect"]
