"""Print one of the paper's tables, with the numbers of your own runs next to the paper's.

python recipes/paper/table.py 3 [RUN_FOLDER ...]      (table.py alone lists the tables)

A run's folder holds the `metrics.json` that every recipe writes, the `evaluation.json` of
`evaluate.py`, or both; where both have a number, that of `evaluate.py` counts.
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml

TABLES = Path(__file__).parent / "tables.yaml"


def read_tables() -> dict[str, dict[str, Any]]:
    """The paper's tables, by their number."""
    tables = yaml.safe_load(TABLES.read_text(encoding="utf-8"))
    return {str(number): table for number, table in tables.items()}


def measured(report: dict[str, Any], measure: str) -> tuple[float, float]:
    """A number of a run and its standard error, both in the unit of the paper; NaN: not measured.

    Args:
        report: the content of `metrics.json` or `evaluation.json`.
        measure: TASK/METRIC of lm-evaluation-harness, or a perplexity: held_out/NAME (per token) or
            by_document/NAME.
    """
    task, metric = measure.split("/", 1)
    if task == "held_out":
        return report.get("held_out", {}).get(metric, math.nan), math.nan
    if task == "by_document":
        found = report.get("by_document", {}).get(metric, {})
        return found.get("perplexity", math.nan), found.get("stderr") or math.nan
    found = report.get("tasks", {}).get(task, {})
    name, _, variant = metric.partition(",")
    error = f"{name}_stderr,{variant}" if variant else f"{name}_stderr"
    return 100 * found.get(metric, math.nan), 100 * found.get(error, math.nan)


def row_of(report: dict[str, Any], table: dict[str, Any]) -> list[str]:
    """The cells of a run, in the order of the table's columns; the mean is of those measured."""
    measures = table.get("measures", [])
    pairs = [measured(report, measure) for measure in measures]
    cells = [
        "-" if math.isnan(value) else f"{value:.2f}" + ("" if math.isnan(e) else f" ± {e:.2f}")
        for value, e in pairs
    ]
    cells += ["-"] * (len(table["columns"]) - len(cells))
    if table["columns"][-1] == "Average" and pairs and not any(math.isnan(v) for v, _ in pairs):
        cells[-1] = f"{statistics.fmean(value for value, _ in pairs):.2f}"
    return cells


def read_run(folder: Path) -> dict[str, Any]:
    """What was measured of a run, from both of its files; empty if there are none."""
    report: dict[str, Any] = {}
    for name in ("metrics.json", "evaluation.json"):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for part, values in content.items():
            merges = isinstance(values, dict) and isinstance(report.get(part), dict)
            report[part] = report[part] | values if merges else values
    return report


def format_table(table: dict[str, Any], runs: dict[str, dict[str, Any]]) -> str:
    """The table as Markdown: the paper's rows, then one for each run."""
    lines = [
        "| | " + " | ".join(table["columns"]) + " |",
        "| --- " * (len(table["columns"]) + 1) + "|",
    ]
    for name, values in table["rows"].items():
        lines.append(f"| {name} | " + " | ".join(f"{value:g}" for value in values) + " |")
    for name, report in runs.items():
        lines.append(f"| *{name}* | " + " | ".join(row_of(report, table)) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Print a table, or the list of them.

    Raises:
        SystemExit: there is no such table, or a folder has no `metrics.json`.
    """
    tables = read_tables()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("number", nargs="?", help="of the table: " + ", ".join(tables))
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN_FOLDER")
    args = parser.parse_args(argv)
    if args.number is None:
        for number, table in tables.items():
            print(f"Table {number}: {table['title']}")
        return
    if args.number not in tables:
        parser.error(f"no table {args.number!r}; there are {', '.join(tables)}")
    table, runs = tables[args.number], {}
    for folder in args.runs:
        runs[folder.name] = read_run(folder)
        if not runs[folder.name]:
            parser.error(f"{folder} has no metrics.json or evaluation.json; name a run's folder")
    if runs and "measures" not in table:
        print("The columns of this table have no measure that recipes record.", file=sys.stderr)
    unit = "perplexity, lower is better" if table.get("lower_is_better") else "percent"
    print(f"Table {args.number}: {table['title']} ({unit})\n")
    print(format_table(table, runs))
    if "setup" in table:
        print(f"\nSetup: {table['setup']}")
    for note in table.get("as_run", []):
        print(f"\n- {' '.join(note.split())}")


if __name__ == "__main__":
    main()
