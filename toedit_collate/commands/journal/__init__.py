"""`toedit journal`: look into a journal, check it, and write the data that a generation saw."""

from .command import add_journal

__all__ = ["add_journal"]
