"""What a command line, a config or a table says of a policy's fields, as the fields tell it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Option:
    """One field of `EditPolicy` as users see it.

    Attributes:
        name: of the field.
        default: of the field.
        help: what it does, in a line without a full stop.
        source: where in the paper or in the authors' script it comes from; "" where it is ours.
        kind: bool, int, float or str: what one value of it is.
        choices: the words that it takes; empty where it takes others.
        is_list: whether it takes several values.
        written: whether it can be written down, on a command line or in YAML.
    """

    name: str
    default: Any
    help: str
    source: str
    kind: type
    choices: tuple[str, ...] = ()
    is_list: bool = False
    written: bool = True

    @property
    def annotation(self) -> Any:
        """The type of a config's field that may be left out: `float | None`."""
        one: Any = Literal[self.choices] if self.choices else self.kind
        return Union[list[one] if self.is_list else one, None]  # noqa: UP007 - made at run time

    def read(self, value: Any) -> Any:
        """A value as it came out of a YAML file, which takes `1e-4`, without a point, for text.

        Example:
            >>> threshold = Option("threshold", 0.99, "a probability", "", float)
            >>> threshold.read("1e-4"), threshold.read("high"), threshold.read(0.5)
            (0.0001, 'high', 0.5)
        """
        if self.kind is float and isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                pass  # what it must be is said where the field is checked
        return value


def described(default: Any, text: str, *, source: str = "", written: bool = True) -> Any:
    """A dataclass field with what users are told about it."""
    return dataclasses.field(
        default=default, metadata={"help": text, "source": source, "written": written}
    )


def options_of(policy: type) -> dict[str, Option]:
    """The fields of a policy's class, by name, in their order."""
    types = get_type_hints(policy)
    return {
        field.name: _option(field, types[field.name])
        for field in dataclasses.fields(policy)
        if "help" in field.metadata
    }


def _option(field: dataclasses.Field[Any], annotation: Any) -> Option:
    kinds = [one for one in get_args(annotation) if one is not type(None)]
    if get_origin(annotation) is Literal:
        kind, choices, is_list = str, get_args(annotation), False
    elif get_origin(annotation) is tuple:
        kind, choices, is_list = kinds[0], (), True
    else:  # bool, int, float; or the first of several, beside None
        kind, choices, is_list = kinds[0] if kinds else annotation, (), False
    return Option(
        name=field.name,
        default=field.default,
        help=field.metadata["help"],
        source=field.metadata["source"],
        kind=kind,
        choices=choices,
        is_list=is_list,
        written=field.metadata["written"],
    )


def as_docstring(options: Iterable[Option]) -> str:
    """Fields as the section `Attributes` of a docstring has them."""
    lines = [
        f"        {one.name} (default {one.default!r}): {one.help}."
        + (f" Source: {one.source}." if one.source else "")
        for one in options
    ]
    return "\n    Attributes:\n" + "\n".join(lines) + "\n"


def as_markdown(options: Iterable[Option]) -> str:
    """Fields as the table in docs/policies.md."""
    lines = ["| option | default | what it does | source |", "| --- | --- | --- | --- |"]
    for one in options:
        default = f'"{one.default}"' if isinstance(one.default, str) else repr(one.default)
        lines.append(f"| `{one.name}` | `{default}` | {one.help} | {one.source} |")
    return "\n".join(lines)
