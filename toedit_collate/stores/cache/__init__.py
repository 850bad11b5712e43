"""A bounded cache of what a frozen prior decides, so that later epochs need no forward pass."""

from .decisions import Decisions
from .identity import Identity
from .prior import CachedPrior
from .store import NO_LIMIT, DecisionCache

__all__ = ["NO_LIMIT", "CachedPrior", "DecisionCache", "Decisions", "Identity"]
