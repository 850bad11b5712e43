"""The fields of `EditPolicy`, for command lines, configs and tables; and the rules of `protect`."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# Kinds of text that are never edited; their expressions are in tokens/rules.py.
RULES = ("code", "latex", "names", "numbers", "urls")
REGEX = "regex:"
# A comma separates two rules only if a rule follows: an expression may contain commas.
_SEPARATOR = re.compile(rf",(?=\s*(?:{'|'.join(RULES)})\s*(?:,|$)|\s*{REGEX})")

_NOUNS = {bool: "True or False", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Option:
    """One field of `EditPolicy`."""

    name: str  # of the field
    default: Any  # of the field
    help: str  # what the field does, in one line without a full stop
    source: str  # where it is in the paper or the authors' script; "" if the field is ours
    kind: type  # bool, int, float or str: the type of one value
    choices: tuple[str, ...] = ()  # the allowed words; empty if any value of `kind` is allowed
    is_list: bool = False  # whether the field holds several values

    @property
    def annotation(self) -> Any:
        """The type of this field in a config, where every field is optional: `float | None`."""
        one: Any = Literal[self.choices] if self.choices else self.kind
        return Union[list[one] if self.is_list else one, None]  # noqa: UP007 - made at run time

    def read(self, value: Any) -> Any:
        """Convert a value from a YAML file. YAML reads `1e-4`, which has no point, as text."""
        if self.kind is float and isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                pass  # `check` reports it
        return value

    def check(self, value: Any) -> None:
        """Raise unless the value has the type of this field, or is its default."""
        if self.choices and value not in self.choices:
            words = ", ".join(map(repr, self.choices))
            raise ValueError(f"{self.name} must be one of {words}, got {value!r}")
        if self.kind is str or self.is_list or (value is None and self.default is None):
            return
        allowed = (int, float) if self.kind is float else self.kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and self.kind is not bool):
            raise TypeError(f"{self.name} must be {_NOUNS[self.kind]}, got {value!r}")


def described(default: Any, text: str, *, source: str = "") -> Any:
    """A dataclass field with its help text."""
    return dataclasses.field(default=default, metadata={"help": text, "source": source})


def options_of(policy: type) -> dict[str, Option]:
    """The fields of a policy class by name, in their order."""
    types, options = get_type_hints(policy), {}
    for field in dataclasses.fields(policy):
        annotation = types[field.name]
        kinds = [one for one in get_args(annotation) if one is not type(None)]
        kind, choices = kinds[0] if kinds else annotation, ()
        if get_origin(annotation) is Literal:
            kind, choices = str, get_args(annotation)
        is_list = get_origin(annotation) is tuple
        options[field.name] = Option(
            field.name, field.default, **field.metadata, kind=kind, choices=choices, is_list=is_list
        )
    return options


def parse_rules(text: str) -> tuple[str, ...]:
    r"""The rules in a string, sorted, without repetitions.

    They are names of `RULES` and `regex:EXPRESSION`, separated by commas.

    Raises:
        ValueError: a rule does not exist, or an expression is not valid.

    Example:
        >>> parse_rules(r"numbers, code,regex:[A-Z]{2,5}-\d+")
        ('code', 'numbers', 'regex:[A-Z]{2,5}-\\d+')
    """
    rules = set()
    for part in _SEPARATOR.split(text):
        if part.lstrip().startswith(REGEX):
            rules.add(_checked_expression(part.lstrip()))
        else:
            rules.update(word.strip() for word in part.split(","))
    for rule in rules:
        if rule not in RULES and (rule == REGEX or not rule.startswith(REGEX)):
            raise ValueError(
                f"protect has no rule {rule!r}, in {text!r}; the rules are {', '.join(RULES)} and "
                f"{REGEX}EXPRESSION, separated by commas"
            )
    return tuple(sorted(rules))


def _checked_expression(rule: str) -> str:
    try:
        re.compile(rule.removeprefix(REGEX))
    except re.error as error:
        raise ValueError(
            f"protect has {rule!r}, which is not a regular expression of Python's re ({error})"
        ) from None
    return rule
