"""The section `toedit:` of another framework's YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_type_hints

from huggingface_hub.dataclasses import type_validator

from ..policy import OPTIONS
from .arguments import PREFIX, EditArguments
from .fields import did_you_mean

# Inside the section, a name needs no prefix.
_FIELDS = {
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
        ValueError: a name is unknown, or a value cannot be used.

    Example:
        >>> read_section({"policy": "reference_code", "top_k": 8}).policy().temperature
        1.5
        >>> read_section({"tresh": 0.9})
        Traceback (most recent call last):
        ...
        ValueError: toedit: 'tresh' is not a field; did you mean threshold?
    """
    given = {} if section is None else section
    if not isinstance(given, Mapping):
        raise ValueError(f"toedit must be a mapping, as in {{policy: paper}}, got {section!r}")
    types = get_type_hints(EditArguments)
    fields: dict[str, Any] = {}
    try:
        for name, value in given.items():
            if name not in _FIELDS:
                raise ValueError(f"{name!r} is not a field; {did_you_mean(str(name), _FIELDS)}")
            field = _FIELDS[name]
            if field in ("refresh", "decision_cache") and value is not None:
                value = str(value)  # YAML may have read a number or true
            if name not in OPTIONS:  # `EditPolicy` checks its own fields
                type_validator(name, value, types[field])
            fields[field] = value
        return EditArguments(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"toedit: {error}") from None
