"""`toedit demo`: real text, edited before your eyes, offline and in under three minutes."""

from .errors import DemoError
from .options import add_demo

__all__ = ["DemoError", "add_demo"]
