"""Options for each field of `EditPolicy`, and the policy that they make."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..policy import EditPolicy
from ..usage import UnusableError

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "reference_code": {"strategy": "up_revise"},
    "low_drop_up_revise": {"strategy": "low_drop_up_revise"},
    "filtering": {"strategy": "filtering"},
}
# A function can't be written on a command line.
WITHOUT_OPTION = ("protect",)

_HELP = {
    "threshold": "the probability that bounds the region",
    "region": "which side of the threshold is resampled",
    "sampler": "the candidates of a draw",
    "top_k": "number of candidates of the sampler top_k",
    "top_p": "mass of the nucleus of the sampler top_p",
    "temperature": "of candidates and draws",
    "scope": "loss: tokens that have a label; all: prompts, too",
    "drop_below": "remove tokens with a probability below this",
    "exclude_original": "draw among the other candidates",
    "protect_special": "leave special tokens and the chat template alone",
    "protected_token_ids": "more ids that are never edited",
    "seed": "of the draws; only --output depends on it",
    "redraw": "whether each epoch draws afresh; only --output depends on it",
}


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
                help=_HELP[field.name],
                **_reading(types[field.name]),
            )


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
    preset = PRESETS[args.policy]
    try:
        if preset:
            return EditPolicy.reference_code(**preset, **given)
        return EditPolicy.paper(**given)
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
