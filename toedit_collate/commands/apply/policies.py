"""Options for each field of `EditPolicy`, and the policy that they make."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ...policy import EditPolicy
from ...tools.errors import UnusableError
from ...tools.presets import HELP, PRESETS, WITHOUT_OPTION, make_policy


def add_policy(parser: Any) -> None:
    """Add `--policy`, and an option for each field of `EditPolicy`, to an argparse parser."""
    group = parser.add_argument_group(
        "policy", "which tokens are edited, and how; the training run must have the same"
    )
    group.add_argument(
        "--policy",
        choices=tuple(PRESETS),
        default="paper",
        help="paper: Algorithm 1; the others are strategies of the authors' script. The options "
        "below change single fields of it; default: %(default)s",
    )
    types = get_type_hints(EditPolicy)
    for field in dataclasses.fields(EditPolicy):
        if field.name not in WITHOUT_OPTION:
            group.add_argument(
                f"--{field.name.replace('_', '-')}",
                dest=_dest(field.name),
                default=None,  # "not given": the preset's value stands
                help=_help(field.name),
                **_reading(types[field.name]),
            )


def _help(name: str) -> str:
    # A cache holds decisions, which no draw has a part in.
    return HELP[name] + ("; only --output depends on it" if name in ("seed", "redraw") else "")


def _reading(kind: Any) -> dict[str, Any]:
    """How argparse reads a value of the type of a field."""
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is tuple:
        return {"type": int, "nargs": "+", "metavar": "ID"}
    number = int if kind is int else float
    return {"type": number, "metavar": "N" if number is int else "X"}


def _dest(name: str) -> str:
    return f"policy_{name}"


def policy_of(args: argparse.Namespace) -> EditPolicy:
    """The policy that was asked for.

    Raises:
        UnusableError: a value is out of its range.
    """
    given = {
        field.name: getattr(args, _dest(field.name))
        for field in dataclasses.fields(EditPolicy)
        if getattr(args, _dest(field.name), None) is not None
    }
    try:
        return make_policy(args.policy, **given)
    except (TypeError, ValueError) as error:
        raise UnusableError(str(error)) from None


def as_python(policy: EditPolicy) -> str:
    """The policy as one writes it; default values are left out."""
    arguments = (
        f"{field.name}={getattr(policy, field.name)!r}"
        for field in dataclasses.fields(policy)
        if getattr(policy, field.name) != field.default
    )
    return f"EditPolicy({', '.join(arguments)})"
