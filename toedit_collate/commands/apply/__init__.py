"""`toedit apply`: score a dataset once, offline, for training runs without the prior."""

from .options import add_apply

__all__ = ["add_apply"]
