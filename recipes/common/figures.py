"""Figures, written as PNG and SVG; matplotlib is imported when the first one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toedit_collate.data.files import whole
from toedit_collate.errors import UnusableError

# Okabe and Ito's colours: colour-blind readers, too, tell them apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
LINES = ("-", "--", "-.", ":")


def check_can_draw() -> None:
    """See that figures can be drawn, before hours of work.

    Raises:
        UnusableError: matplotlib is not installed.
    """
    try:
        import matplotlib  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        raise UnusableError(
            'figures need matplotlib, which is not installed; pip install "toedit_collate[plot]"'
        ) from None


def new_figure(columns: int = 1, rows: int = 1, *, width: float = 6.4, height: float = 4.2) -> Any:
    """A figure and its axes in a row-major list; `width` and `height` of one panel, in inches.

    Raises:
        UnusableError: matplotlib is not installed.
    """
    check_can_draw()
    from matplotlib.figure import Figure  # no pyplot: it would choose a backend for the process

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, list(axes.flat)


def save_figure(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write `name`.png and `name`.svg into a folder, which is made; returns their paths."""
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    for path in paths:
        with whole(path) as place:
            figure.savefig(place, dpi=150, format=path.suffix[1:])
        figure.set_layout_engine("none")  # it is laid out now: that takes as long as to draw it
    return paths


def log_scale(
    axis: Any, *, x: bool = False, y: bool = False, steps: tuple[float, ...] = (1.0,)
) -> None:
    """Logarithmic scales with plain numbers, and ticks at `steps` times each power of ten.

    Exponents and the small ticks cost most of the time of a draw.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    for wanted, name in ((x, "x"), (y, "y")):
        if wanted:
            getattr(axis, f"set_{name}scale")("log")
            side = getattr(axis, f"{name}axis")
            side.set_major_locator(LogLocator(subs=steps))
            side.set_minor_locator(NullLocator())
            side.set_major_formatter(lambda value, _: plain(value))


def plain(value: float) -> str:
    """A number without an exponent.

    Example:
        >>> plain(1e-5), plain(0.3), plain(10_000.0)
        ('0.00001', '0.3', '10,000')
    """
    return f"{value:,.0f}" if value >= 10 else f"{value:.9f}".rstrip("0").rstrip(".")


def color_of(number: int) -> str:
    """The colour of the n-th line or bar."""
    return COLORS[number % len(COLORS)]
