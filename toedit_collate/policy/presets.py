"""Policies that have a name: the paper's, and the strategies of the authors' script."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A policy with a name.

    Attributes:
        help: what it does, in a line.
        fields: of `EditPolicy`, where they are not its defaults.
    """

    help: str
    fields: dict[str, Any] = field(default_factory=dict)


# The script is `toedit_resampling.py` of github.com/Xuekai-Zhu/toedit. Its "up_revise" takes 64
# candidates in its example, and 8 by default.
PRESETS: dict[str, Preset] = {
    "paper": Preset("the paper's Algorithm 1: P >= 0.99, top-k with k = 8, temperature 1"),
    "reference_code": Preset(
        'the authors\' published script ("up_revise"): k = 64, temperature 1.5',
        {"top_k": 64, "temperature": 1.5},
    ),
    "low_drop_up_revise": Preset(
        "the script's other strategy: temperature 1, and tokens with P < 0.001 are removed",
        {"top_k": 64, "drop_below": 0.001},
    ),
    "filtering": Preset(
        "only removes tokens with P < 0.001, as the script's third strategy does",
        {"region": "none", "drop_below": 0.001},
    ),
}
