"""The figure of `theory.py`: error over generations, and against the total share edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from common.figures import LINES, color_of, new_figure

from .simulation import TOTAL_SHARES, Curve, World


def draw_theory(
    world: World,
    curves: Sequence[Curve],
    sweep: Mapping[str, Sequence[Curve]],
    within: Mapping[str, float],
) -> Any:
    """Draw both parts of the study.

    Args:
        world: the problem.
        curves: of the arms.
        sweep: way of editing -> a curve for each of `TOTAL_SHARES`.
        within: way of editing -> total share up to which the error stays within 2.

    Returns:
        A matplotlib figure.
    """
    figure, (left, right) = new_figure(2, width=6.8, height=4.8)
    _over_generations(left, curves)
    _over_shares(right, sweep, within)
    figure.suptitle(
        f"Linear process of section 3.2: d = {world.dimension}, T = {world.samples}, "
        f"{world.runs:,} runs; bands: two standard errors",
        fontsize=10,
    )
    return figure


def _over_generations(axis: Any, curves: Sequence[Curve]) -> None:
    for number, curve in enumerate(curves):
        generations = np.arange(len(curve.mean))
        color = color_of(number)
        axis.plot(
            generations, curve.mean, LINES[number % 4], color=color, label=curve.arm.name, lw=1.8
        )
        spread = 2 * curve.standard_error
        axis.fill_between(
            generations, curve.mean - spread, curve.mean + spread, color=color, alpha=0.25, lw=0
        )
        axis.plot(generations[-1:], [curve.closed_form], "x", color=color, ms=7, mew=1.6)
    axis.plot([], [], "kx", label="Theorem 1's closed form (x)")
    axis.axhline(2, color="black", lw=1)
    axis.annotate("twice real data (Eq. 5)", (0.02, 2.06), fontsize=8)
    axis.set_yscale("log", base=2)
    axis.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axis.set_xlabel("generations of editing")
    axis.set_ylabel("test error, in units of $\\sigma^2 d / (T - d - 1)$")
    axis.legend(fontsize=7.5, frameon=False)


def _over_shares(
    axis: Any, sweep: Mapping[str, Sequence[Curve]], within: Mapping[str, float]
) -> None:
    for number, (name, found) in enumerate(sweep.items()):
        means = [curve.mean[-1] for curve in found]
        axis.errorbar(
            TOTAL_SHARES,
            means,
            yerr=[2 * curve.standard_error[-1] for curve in found],
            fmt=f"o{LINES[number % 4]}",
            color=color_of(number),
            ms=4,
            label=f"{name}: within 2 up to {within[name]:.2f}",
        )
    axis.plot((0, 1), (1, 2), color="grey", lw=1.4, label="Theorem 1's closed form")
    axis.axhline(2, color="black", lw=1)
    axis.set_xlabel("share of rows edited, all generations together")
    axis.set_ylabel("test error after all edits")
    axis.set_xlim(0, 1.03)
    axis.legend(fontsize=7.5, frameon=False)
