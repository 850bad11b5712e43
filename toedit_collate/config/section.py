"""The section `toedit:` of another framework's YAML, read and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..policy import OPTIONS
from .arguments import PREFIX, EditArguments
from .nearest import did_you_mean

# Inside a section of its own, a name needs no prefix.
_NAMES = {
    **{one.name.removeprefix(PREFIX): one.name for one in dataclasses.fields(EditArguments)},
    "cache": "decision_cache",
}


def read_section(section: Any) -> EditArguments:
    """Read the section `toedit:`.

    Args:
        section: `policy` (a preset), any field of `EditPolicy` by its name, and `prior`,
            `prior_dtype`, `prior_quantization`, `prior_adapter`, `prior_revision`,
            `prior_compile`, `journal`, `refresh`, `cache`. None: the paper's policy, and the
            frozen base of the LoRA trainee as the prior.

    Raises:
        ValueError: a name is unknown, or a value can't be used; says which, and the mend.

    Example:
        >>> read_section({"policy": "reference_code", "top_k": 8}).policy().temperature
        1.5
        >>> read_section({"tresh": 0.9})
        Traceback (most recent call last):
        ...
        ValueError: toedit: 'tresh' is no field; did you mean threshold?
    """
    given = {} if section is None else section
    if not isinstance(given, Mapping):
        raise ValueError(f"toedit must be a mapping, as in {{policy: paper}}, got {section!r}")
    types = get_type_hints(EditArguments)
    fields: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _NAMES:
            raise ValueError(f"toedit: {name!r} is no field; {did_you_mean(str(name), _NAMES)}")
        field = _NAMES[name]
        if field in ("refresh", "decision_cache"):  # words, whatever YAML takes them for
            value = None if value is None else str(value)
        if field.removeprefix(PREFIX) in OPTIONS:
            value = OPTIONS[field.removeprefix(PREFIX)].read(value)
        if not _fits(value, types[field]):
            raise ValueError(f"toedit: {name} must be {_told(types[field])}, got {value!r}")
        fields[field] = value
    try:
        return EditArguments(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"toedit: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (UnionType, Union):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(one, get_args(hint)[0]) for one in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def _told(hint: Any) -> str:
    """A type in words."""
    parts = [one for one in get_args(hint) if one is not NoneType]
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, parts))
    if get_origin(hint) is list:
        return "a list of whole numbers" if parts == [int] else "a list"
    if parts:
        return " or ".join(_told(one) for one in parts)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return words.get(hint, str(hint))
