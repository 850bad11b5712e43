"""Make a study, and write what came out: table, JSON and figures."""

from __future__ import annotations

from pathlib import Path

from common.figures import check_can_draw, save_figure

from toedit_collate.data.files import write_json, write_text
from toedit_collate.errors import UnusableError

from .collapse import run_collapse
from .draw import draw_arms, draw_generations, draw_mixtures
from .engine import run_study
from .settings import CollapseStudy, Study
from .summary import format_generations, format_study, summarize, summarize_generations


def make_study(study: Study | CollapseStudy, data: Path, prior: str, output: Path) -> str:
    """Make the runs of a study that are not made yet, and write `NAME.json`, `.md` and figures.

    Args:
        study: what to run.
        data: the folder of its files.
        prior: folder or hub id of the prior.
        output: folder of runs and results.

    Returns:
        The table.

    Raises:
        UnusableError: figures can't be drawn here, or the data do not suffice.
    """
    try:
        check_can_draw()
    except ImportError as error:
        raise UnusableError(str(error)) from None
    if isinstance(study, CollapseStudy):
        found = run_collapse(study, data, prior, output)
        rows = summarize_generations(found)
        table = format_generations(rows)
        save_figure(draw_generations(rows), output, study.name)
        if study.fractions:
            save_figure(draw_mixtures(rows, study.fractions), output, f"{study.name}_mixtures")
    else:
        results = run_study(study, data, prior, output)
        rows = summarize(study, results)
        table = format_study(study, rows)
        save_figure(draw_arms(rows, results), output, study.name)
    write_json(output / f"{study.name}.json", {"question": study.question, "rows": rows})
    write_text(output / f"{study.name}.md", table)
    return table
