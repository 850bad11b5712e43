"""The journal of edits: what was changed, on disk, so that it can be replayed."""

from .journal import Journal

__all__ = ["Journal"]
