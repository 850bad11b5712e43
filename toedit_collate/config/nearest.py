"""A misspelt name, told with the one that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known.

    Args:
        name: what was written.
        known: what could have been meant.

    Returns:
        "did you mean X?"; where nothing resembles it, what there is.

    Example:
        >>> did_you_mean("edit_tresh", ["edit_threshold", "edit_top_k", "prior"])
        'did you mean edit_threshold?'
        >>> did_you_mean("colour", ["prior", "journal"])
        'known are journal, prior'
    """
    choices = sorted(known)
    near = get_close_matches(name, choices, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(choices)}" if len(choices) <= 30 else "see --help for all names"
