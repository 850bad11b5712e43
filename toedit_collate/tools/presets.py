"""Named policies and the help on each option, for command lines and configs."""

from __future__ import annotations

from typing import Any

from ..policy import EditPolicy

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "reference_code": {"strategy": "up_revise"},
    "low_drop_up_revise": {"strategy": "low_drop_up_revise"},
    "filtering": {"strategy": "filtering"},
}
# A function can't be written on a command line.
WITHOUT_OPTION = ("protect",)

HELP = {
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
    "seed": "of the draws",
    "redraw": "whether each epoch draws afresh",
}


def make_policy(preset: str, **changes: Any) -> EditPolicy:
    """A preset with single fields changed.

    Args:
        preset: one of `PRESETS`.
        changes: fields of `EditPolicy`.

    Raises:
        ValueError: unknown preset, or a value out of its range.
        TypeError: a value of the wrong type.

    Example:
        >>> make_policy("reference_code", top_k=8).temperature
        1.5
    """
    if preset not in PRESETS:
        raise ValueError(f"policy must be one of {', '.join(PRESETS)}, got {preset!r}")
    if PRESETS[preset]:
        return EditPolicy.reference_code(**PRESETS[preset], **changes)
    return EditPolicy.paper(**changes)
