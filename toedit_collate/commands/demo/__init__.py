"""`toedit demo`: real text, edited before your eyes, offline and in under three minutes."""

from .options import add_demo

__all__ = ["add_demo"]
