"""The figures of a study."""

from __future__ import annotations

from typing import Any

from common.figures import LINES, color_of, new_figure

from .summary import Result, losses_on_others


def draw_arms(rows: list[dict[str, Any]], results: dict[str, list[Result]]) -> Any:
    """Three panels: losses over epochs, differences from the first arm, and the front.

    The front has the test loss against the mean loss on other text: every method trades one for
    the other, and one is better than another where it lies to the lower left.

    Args:
        rows: as `summarize` gives them.
        results: of each arm, one for each seed.
    """
    height = max(4.6, 0.6 + 0.32 * len(rows))
    figure, (left, middle, right) = new_figure(3, width=17 / 3, height=height)
    for number, row in enumerate(rows):
        color, line = color_of(number), LINES[number // 8 % 4]
        curves = [one["validation"] for one in results[row["arm"]]]
        mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
        left.plot(range(1, len(mean) + 1), mean, line, color=color, label=row["arm"], lw=1.4)
        test = row["measures"]["test loss"]
        spread = 2 * (test["difference_error"] or 0)
        middle.errorbar(test["difference"], -number, xerr=spread, fmt="o", color=color)
        others = [row["measures"][name]["mean"] for name in losses_on_others(row)]
        if others:
            away = sum(others) / len(others)
            right.plot(test["mean"], away, "o", color=color)
            right.annotate(row["arm"], (test["mean"], away), fontsize=7, xytext=(3, 3),
                           textcoords="offset points")  # fmt: skip
    left.set_xlabel("epoch")
    left.set_ylabel("validation loss, nats per token")
    left.xaxis.get_major_locator().set_params(integer=True)
    longest = max(len(row["arm"]) for row in rows)
    left.legend(
        fontsize=6.5, frameon=False, ncols=3 if longest < 30 else 2,
        loc="upper left", bbox_to_anchor=(-0.15, -0.12),
    )  # fmt: skip
    middle.axvline(0, color="black", lw=1)
    middle.set_yticks([-n for n in range(len(rows))], [row["arm"] for row in rows], fontsize=8)
    middle.set_xlabel(f"test loss minus that of `{rows[0]['arm']}` (bars: two standard errors)")
    right.set_xlabel("test loss, nats per token")
    right.set_ylabel("mean loss on other text")
    return figure


def draw_generations(rows: list[dict[str, Any]]) -> Any:
    """Three panels: test loss, loss on the rarest tenth, and entropy, over generations."""
    figure, axes = new_figure(3, width=5.2, height=4.2)
    arms = list(dict.fromkeys(row["arm"] for row in rows if "mixture" not in row["arm"]))
    start = next(row for row in rows if row["generation"] == 0)
    panels = {
        "test loss": "test loss",
        "rarest tenth": "rarest tenth",
        "bigram entropy": "entropy of the training rows' bigrams",
    }
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for number, arm in enumerate(arms):
            found = [start, *(r for r in rows if r["arm"] == arm and r is not start)]
            if arm == start["arm"]:
                real = start["measures"][name]["mean"]
                axis.axhline(real, color="black", lw=1, label=f"{arm} text, every time")
            else:
                _plot(axis, [row["generation"] for row in found], found, name, number, arm)
        axis.set_xlabel("generation")
        axis.set_xticks(sorted({row["generation"] for row in rows}))
        axis.set_ylabel("bits" if name == "bigram entropy" else "nats per token")
        axis.set_title(title, fontsize=10)
    axes[0].legend(fontsize=7.5, frameon=False)
    return figure


def draw_mixtures(rows: list[dict[str, Any]], shares: list[float]) -> Any:
    """Test loss and that of the rarest tenth against the share of written text."""
    figure, (axis,) = new_figure(1, width=5.6, height=4.2)
    found = [next(r for r in rows if r["arm"] == f"mixture {share:.0%}") for share in shares]
    for number, name in enumerate(("test loss", "rarest tenth")):
        _plot(axis, [100 * share for share in shares], found, name, number, name)
    axis.set_xlabel("written by a model, % of the tokens")
    axis.set_ylabel("nats per token")
    axis.legend(frameon=False)
    return figure


def _plot(
    axis: Any, places: list[float], rows: list[dict[str, Any]], name: str, number: int, label: str
) -> None:
    """The means of a measure, with bars of two standard errors."""
    measures = [row["measures"][name] for row in rows]
    axis.errorbar(
        places, [one["mean"] for one in measures],
        yerr=[2 * (one["standard_error"] or 0) for one in measures],
        fmt=f"o{LINES[number % 4]}", color=color_of(number), ms=4, label=label,
    )  # fmt: skip
