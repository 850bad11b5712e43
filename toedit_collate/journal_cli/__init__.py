"""`toedit journal`: look into a journal, check it, and write the data that a generation saw."""

from .errors import UnusableError
from .options import add_journal

__all__ = ["UnusableError", "add_journal"]
