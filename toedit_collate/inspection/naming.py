"""Policies as a user names several of them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config.policies import parse_policy, short_name
from ..policy import PRESETS, EditPolicy


def named_policies(
    policies: Mapping[str, EditPolicy] | Sequence[EditPolicy | str] | EditPolicy | str,
    **changes: Any,
) -> dict[str, EditPolicy]:
    """Policies by name, in their order.

    Args:
        policies: of `inspect_edits`.
        changes: fields that all of them get.

    Raises:
        ValueError: unknown preset or field, a value out of its range, or no policy at all.
        TypeError: a value of the wrong type.

    Example:
        >>> found = named_policies(["paper", "reference_code top_k=8", "threshold=0.5"])
        >>> list(found), found["threshold=0.5"].threshold
        (['paper', 'reference_code top_k=8', 'threshold=0.5'], 0.5)
    """
    if isinstance(policies, Mapping):
        named = dict(policies)
    else:
        given = [policies] if isinstance(policies, (str, EditPolicy)) else list(policies)
        named = {}
        for one in given:
            name = " ".join(one.split()) if isinstance(one, str) else short_name(one)
            named[name] = parse_policy(one, **changes) if isinstance(one, str) else one
    if not named:
        raise ValueError(f"policies is empty; name one or several, of {', '.join(PRESETS)}")
    return named
