"""Options for each field of `EditPolicy`, and the policy that they make."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ...policy import OPTIONS, PRESETS, EditPolicy, Option, make_policy
from ...tools.errors import UnusableError


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
    for option in OPTIONS.values():
        if option.written:
            group.add_argument(
                f"--{option.name.replace('_', '-')}",
                dest=_dest(option.name),
                default=None,  # "not given": the preset's value stands
                help=_help(option),
                **_reading(option),
            )


def _help(option: Option) -> str:
    only_output = "; only --output depends on it" if option.name in ("seed", "redraw") else ""
    return option.help + only_output


def _reading(option: Option) -> dict[str, Any]:
    """How argparse reads the value of a field."""
    if option.choices:
        return {"choices": option.choices}
    if option.kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    words = {int: "N", float: "X", str: "TEXT"}
    reading = {"type": option.kind, "metavar": words[option.kind]}
    return {**reading, "nargs": "+"} if option.is_list else reading


def _dest(name: str) -> str:
    return f"policy_{name}"


def policy_of(args: argparse.Namespace) -> EditPolicy:
    """The policy that was asked for.

    Raises:
        UnusableError: a value is out of its range.
    """
    given = {
        name: getattr(args, _dest(name))
        for name in OPTIONS
        if getattr(args, _dest(name), None) is not None
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
