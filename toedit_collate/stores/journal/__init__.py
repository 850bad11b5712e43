"""The journal of edits: what was changed, on disk, so that it can be replayed."""

from .journal import Journal
from .replay import Texts, keys_of

__all__ = ["Journal", "Texts", "keys_of"]
