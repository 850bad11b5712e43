"""Policies as a user names several of them at once."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..policy import OPTIONS, PRESETS, EditPolicy, make_policy
from ..tools.fields import read_policy_field


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


def parse_policy(text: str, **changes: Any) -> EditPolicy:
    """A policy of words: a preset's name, and fields as `name=value`; either may be left out.

    Args:
        text: "paper", "reference_code top_k=8", "threshold=0.5 protect=numbers,code".
        changes: more fields; those in `text` go before them.

    Raises:
        ValueError: unknown preset or field, or a value out of its range.
        TypeError: a value of the wrong type.
    """
    preset, fields = "paper", dict(changes)
    for number, word in enumerate(_words(text)):
        name, equals, value = word.partition("=")
        name = name.replace("-", "_")
        if not equals and number == 0:
            preset = word
        elif not equals or name not in OPTIONS:
            raise ValueError(
                f"policy {text!r}: {word!r} is not a field; write a preset "
                f"({', '.join(PRESETS)}), then name=value with names of {', '.join(OPTIONS)}"
            )
        else:
            fields[name] = read_policy_field(name, value)
    if preset not in PRESETS:
        raise ValueError(
            f"policy must be one of {', '.join(PRESETS)}, or fields as in threshold=0.5, got "
            f"{preset!r}"
        )
    return make_policy(preset, **fields)


def _words(text: str) -> list[str]:
    """What stands between blanks, but for those in quotes; backslashes are an expression's own."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    try:
        return list(lexer)
    except ValueError as error:
        raise ValueError(f"policy {text!r}: can't be read ({error}); close the quotes") from None


def short_name(policy: EditPolicy) -> str:
    """The fields of a policy that are not the paper's."""
    default = EditPolicy()
    parts = [
        f"{name}={value}"
        for name, value in policy.record().items()
        if value != default.record().get(name)
    ]
    return " ".join(parts) or "paper"
