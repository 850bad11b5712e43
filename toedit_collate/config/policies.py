"""Policies as users write them, for all commands and recipes."""

from __future__ import annotations

import re
from typing import Any

from ..policy import OPTIONS, PRESETS, EditPolicy

POLICY_HELP = (
    f"{', '.join(PRESETS)}; or fields, as in threshold=0.5; or both, "
    '"reference_code top_k=8 protect=numbers,code"'
)
# Blanks and commas before the name of a field. Others belong to a value: "protect=code,numbers".
_NAMES = "|".join(name.replace("_", "[-_]") for name in OPTIONS)
_BEFORE_FIELD = re.compile(rf"[\s,]+(?=(?:{_NAMES})=)")


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
    preset, *given = _BEFORE_FIELD.split(f" {text}")
    preset = preset.strip(" ,") or "paper"
    if preset not in PRESETS:
        raise ValueError(
            f"policy must be one of {', '.join(PRESETS)}, or fields as in threshold=0.5, got "
            f"{preset!r}; fields are {', '.join(OPTIONS)}"
        )
    fields = dict(changes)
    for one in given:
        name, _, value = one.partition("=")
        name = name.replace("-", "_")
        fields[name] = _read_value(name, value.rstrip(" ,"))
    common = changes.get("protect")
    if isinstance(common, str) and fields["protect"] not in (None, common):
        fields["protect"] = f"{common},{fields['protect']}"
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


def _read_value(name: str, text: str) -> Any:
    """The value of a field, by YAML's rules."""
    import yaml

    if name == "protect" and text != "null":  # an expression may contain YAML's own characters
        return text
    return OPTIONS[name].read(yaml.safe_load(text))
