"""Policies as users write them, for all commands and recipes."""

from __future__ import annotations

import shlex
from typing import Any

from ..policy import OPTIONS, PRESETS, EditPolicy
from .fields import read_policy_field

POLICY_HELP = (
    f"{', '.join(PRESETS)}; or fields, as in threshold=0.5; or both, "
    '"reference_code top_k=8 protect=numbers,code"'
)


def parse_policy(text: str, **changes: Any) -> EditPolicy:
    """Read a policy: the name of a preset, then fields as `name=value`; both are optional.

    Args:
        text: "paper", "threshold=0.5", "reference_code top_k=8 protect=numbers,code", or with
            commas, "paper,threshold=0.9,top_k=64".
        changes: more fields. Those in `text` win; rules of `protect` are joined.

    Raises:
        ValueError: unknown preset or field, or a value out of range.
        TypeError: a value of the wrong type.

    Example:
        >>> parse_policy("reference_code,threshold=0.9,protect=code,numbers,top_k=8").protect
        'code,numbers'
        >>> parse_policy("threshold=0.5").top_k
        8
    """
    preset, fields = "paper", dict(changes)
    for number, word in enumerate(_split(text)):
        name, equals, value = word.partition("=")
        name = _field_name(name)
        if not equals and number == 0:
            preset = word
        elif not equals or name not in OPTIONS:
            raise ValueError(
                f"policy {text!r}: {word!r} is not a field with a value; write a preset "
                f"({', '.join(PRESETS)}), then name=value with names of {', '.join(OPTIONS)}"
            )
        else:
            fields[name] = read_policy_field(name, value)
    common = changes.get("protect")
    if isinstance(common, str) and fields["protect"] not in (None, common):
        fields["protect"] = f"{common},{fields['protect']}"
    if preset not in PRESETS:
        raise ValueError(
            f"policy must be one of {', '.join(PRESETS)}, or fields as in threshold=0.5, got "
            f"{preset!r}"
        )
    return EditPolicy.preset(preset, **fields)


def short_name(policy: EditPolicy) -> str:
    """The fields in which a policy differs from the paper's.

    Example:
        >>> short_name(EditPolicy(top_k=64)), short_name(EditPolicy.paper())
        ('top_k=64', 'paper')
    """
    default = EditPolicy().record()
    changed = {name: value for name, value in policy.record().items() if value != default.get(name)}
    return " ".join(f"{name}={value}" for name, value in changed.items()) or "paper"


def _split(text: str) -> list[str]:
    """Split at blanks and commas, but not inside the value of a field that may contain them."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    # Backslashes belong to regular expressions.
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    try:
        words = list(lexer)
    except ValueError as error:
        raise ValueError(f"policy {text!r}: can't be read ({error}); close the quotes") from None
    fields: list[str] = []
    for word in words:
        for number, part in enumerate(word.split(",")):
            is_field = "=" in part and _field_name(part.partition("=")[0]) in OPTIONS
            last = _field_name(fields[-1].partition("=")[0]) if fields else ""
            if last in ("protect", "protected_token_ids") and not is_field:
                fields[-1] += ("," if number else " ") + part
            elif part:
                fields.append(part)
    return fields


def _field_name(name: str) -> str:
    return name.strip().replace("-", "_")
