"""Policies as users write them, in one piece of text, for all commands and recipes."""

from __future__ import annotations

import shlex
from typing import Any

from ..policy import OPTIONS, PRESETS, EditPolicy
from .fields import read_policy_field

POLICY_HELP = (
    f"{', '.join(PRESETS)}; fields, as in threshold=0.5; or both in one piece, "
    '"reference_code top_k=8 protect=numbers,code" (or with commas between)'
)


def parse_policy(text: str, **changes: Any) -> EditPolicy:
    """A policy of words: a preset's name, and fields as `name=value`; either may be left out.

    Args:
        text: "paper", "threshold=0.5", "reference_code top_k=8 protect=numbers,code", or with
            commas, "paper,threshold=0.9,top_k=64".
        changes: more fields; those in `text` go before them.

    Raises:
        ValueError: unknown preset or field, or a value out of its range.
        TypeError: a value of the wrong type.

    Example:
        >>> parse_policy("reference_code,threshold=0.9,protect=code,numbers,top_k=8").protect
        'code,numbers'
        >>> parse_policy("threshold=0.5").top_k
        8
    """
    preset, fields = "paper", dict(changes)
    for number, word in enumerate(_fields(text)):
        name, equals, value = word.partition("=")
        name = _known(name)
        if not equals and number == 0:
            preset = word
        elif not equals or name not in OPTIONS:
            raise ValueError(
                f"policy {text!r}: {word!r} is no field with a value; write a preset "
                f"({', '.join(PRESETS)}), then name=value with names of {', '.join(OPTIONS)}"
            )
        else:
            fields[name] = read_policy_field(name, value)
    every = changes.get("protect")
    if isinstance(every, str) and fields["protect"] not in (None, every):
        fields["protect"] = f"{every},{fields['protect']}"  # rules of all, and of this one
    if preset not in PRESETS:
        raise ValueError(
            f"policy must be one of {', '.join(PRESETS)}, or fields as in threshold=0.5, got "
            f"{preset!r}"
        )
    return EditPolicy.preset(preset, **fields)


def short_name(policy: EditPolicy) -> str:
    """The fields of a policy that are not the paper's.

    Example:
        >>> short_name(EditPolicy(top_k=64)), short_name(EditPolicy.paper())
        ('top_k=64', 'paper')
    """
    default = EditPolicy()
    parts = [
        f"{name}={value}"
        for name, value in policy.record().items()
        if value != default.record().get(name)
    ]
    return " ".join(parts) or "paper"


def _fields(text: str) -> list[str]:
    """What stands between blanks or commas; a value that has such itself in one piece."""
    fields: list[str] = []
    for word in _words(text):
        for number, part in enumerate(word.split(",")):
            is_field = "=" in part and _known(part.partition("=")[0]) in OPTIONS
            if fields and not is_field and _may_go_on(fields[-1]):
                fields[-1] += ("," if number else " ") + part
            elif part:
                fields.append(part)
    return fields


def _known(name: str) -> str:
    return name.strip().replace("-", "_")


def _may_go_on(field: str) -> bool:
    """Whether a field's value may hold commas and blanks: rules, expressions, lists of ids."""
    return _known(field.partition("=")[0]) in ("protect", "protected_token_ids")


def _words(text: str) -> list[str]:
    """What stands between blanks, but for those in quotes; backslashes are an expression's own."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    try:
        return list(lexer)
    except ValueError as error:
        raise ValueError(f"policy {text!r}: can't be read ({error}); close the quotes") from None
