"""The chart of `toedit bench --plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.figures import write_figure

from ...errors import UnusableError
from .table import Section

_SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """See to it that a chart can be drawn.

    Raises:
        UnusableError: matplotlib is not installed, or the file's name is of no known format.
    """
    if path.suffix not in _SUFFIXES:
        raise UnusableError(
            f"--plot {path}: a name that ends in {path.suffix or 'nothing'!r}; write .png, .svg "
            "or .pdf"
        )
    try:
        import matplotlib  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        raise UnusableError(
            f"--plot {path}: a chart needs matplotlib, which is not installed; "
            "pip install matplotlib, or leave --plot out"
        ) from None


def draw(path: Path, facts: dict[str, str], sections: list[Section]) -> None:
    """Draw the ratios of `edit` and `training` as bars, and the curves of `survivors`."""
    import matplotlib

    matplotlib.use("Agg")  # a file, on machines without a display, too
    from matplotlib import pyplot

    panels = [s for s in sections if s.name in ("edit", "head", "training", "survivors") and s.rows]
    if not panels:
        raise UnusableError(
            f"--plot {path}: there is nothing to draw in these parts; add edit to --parts"
        )
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 3.2 * len(panels)), squeeze=False, layout="constrained"
    )
    for section, axis in zip(panels, axes[:, 0], strict=True):
        if section.name == "survivors":
            _curves(axis, section)
        else:
            _bars(axis, section)
        axis.set_title(section.title, loc="left", fontsize=9)
    figure.suptitle(f"{facts['prior']}\n{facts['device']}, {facts['dtype']}", fontsize=8)
    write_figure(figure, path, "--plot")
    pyplot.close(figure)


def _bars(axis: Any, section: Section) -> None:
    rows = [row for row in section.rows if "ratio" in row.figures and row.name != "plain / ours"]
    rows.reverse()
    ratios = [row.figures["ratio"] for row in rows]
    spread = [
        [row.figures["ratio"] - row.figures["low"] for row in rows],
        [row.figures["high"] - row.figures["ratio"] for row in rows],
    ]
    axis.barh([row.name for row in rows], ratios, xerr=spread, color="#4c72b0", height=0.6)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel("ratio (median and quartiles)", fontsize=8)
    axis.tick_params(labelsize=7)


def _curves(axis: Any, section: Section) -> None:
    sizes = [row.figures["num_ids"] for row in section.rows]
    for key, label in (
        ("by_id_share", "in the order of ids"),
        ("by_likelihood_share", "likely first"),
    ):
        axis.plot(sizes, [100 * row.figures[key] for row in section.rows], "o-", label=label)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("ids in the first tile", fontsize=8)
    axis.set_ylabel("positions still open, %", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7)
