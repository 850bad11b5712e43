"""Policies side by side: means over seeds, differences from the baseline, standard errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

LOSS = "train loss"
LEGEND = """\
Means over the seeds, ± standard errors of these means; "difference" is that from the runs without
editing, seed by seed. selected, changed: shares of the tokens that were scored. perplexity: per
token of held-out text, which is never edited; lower is better. train loss: nats per token of what
was trained on, so on other text for each policy: not to be compared.
"""
Measure = dict[str, float | None]


def summarize(reports: Sequence[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """Bring the runs of each policy together.

    Args:
        reports: of the runs, as `RunReport` has them.
        baseline: name of the policy that the others are compared with.

    Returns:
        For each policy, in the order of the reports: `policy`, `seeds`, `selected_share` and
        `changed_share` (means; None without editing), and `measures`: name -> `compare` over the
        seeds. The train loss has no difference, since policies train on different text.
    """
    policies = list(dict.fromkeys(report["policy"] for report in reports))
    of_policy = {
        policy: {one["seed"]: _values(one) for one in reports if one["policy"] == policy}
        for policy in policies
    }
    base = of_policy.get(baseline, {})
    rows = []
    for policy, runs in of_policy.items():
        measures = {}
        for name in dict.fromkeys(name for values in runs.values() for name in values):
            own = {seed: values[name] for seed, values in runs.items() if name in values}
            compared = policy != baseline and name != LOSS
            others = {seed: v[name] for seed, v in base.items() if compared and name in v}
            measures[name] = compare(own, others)
        edits = [one["edit"] for one in reports if one["policy"] == policy and one["edit"]]
        shares = {
            name: statistics.fmean(edit[name] for edit in edits) if edits else None
            for name in ("selected_share", "changed_share")
        }
        rows.append({"policy": policy, "seeds": list(runs), **shares, "measures": measures})
    return rows


def compare(own: dict[int, float], base: dict[int, float]) -> Measure:
    """Means and differences over seeds, with standard errors; None where there is no such number.

    Args:
        own: seed -> value.
        base: seed -> value that it is compared with; differences are of the seeds of both.

    Example:
        >>> compare({0: 3.0, 1: 5.0}, {0: 2.0, 1: 2.0})
        {'mean': 4.0, 'standard_error': 1.0, 'difference': 2.0, 'difference_error': 1.0}
    """
    differences = [value - base[seed] for seed, value in own.items() if seed in base]
    return {
        "mean": statistics.fmean(own.values()),
        "standard_error": standard_error([*own.values()]),
        "difference": statistics.fmean(differences) if differences else None,
        "difference_error": standard_error(differences),
    }


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of some values; None for fewer than two, NaN where one of them is.

    Example:
        >>> round(standard_error([1.0, 2.0, 3.0]), 4)
        0.5774
    """
    if len(values) < 2:
        return None
    if any(map(math.isnan, values)):  # which statistics.stdev can't take
        return math.nan
    return statistics.stdev(values) / math.sqrt(len(values))


def _values(report: dict[str, Any]) -> dict[str, float]:
    values = {LOSS: report["train"]["loss"]} if "loss" in report["train"] else {}
    values |= {f"perplexity {name}": value for name, value in report["held_out"].items()}
    for task, metrics in report["tasks"].items():
        # The harness has a standard error over questions; ours is over seeds.
        values |= {f"{task} {n}": v for n, v in metrics.items() if not n.endswith("_stderr")}
    return values


def format_comparison(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table; errors are standard errors over the seeds."""
    names = list(dict.fromkeys(name for row in rows for name in row["measures"]))
    compared = any(m["difference"] is not None for r in rows for m in r["measures"].values())
    with_difference = {name for name in names if compared and name != LOSS}
    table = [["policy", "seeds", "selected", "changed"]]
    for name in names:
        table[0] += [name, "difference"] if name in with_difference else [name]
    for row in rows:
        selected, changed = row["selected_share"], row["changed_share"]
        cells = [row["policy"].replace("|", r"\|"), str(len(row["seeds"]))]
        cells.append("-" if selected is None else f"{selected:.2%}")
        cells.append("-" if changed is None else f"{changed:.4%}")
        for name in names:
            found = row["measures"].get(name, {})
            cells.append(plus_minus(found.get("mean"), found.get("standard_error"), ".4f"))
            if name in with_difference:
                error = found.get("difference_error")
                cells.append(plus_minus(found.get("difference"), error, "+.4f"))
        table.append(cells)
    return markdown(table)


def plus_minus(value: float | None, error: float | None, form: str) -> str:
    """A number and its standard error, as far as there are such.

    Example:
        >>> plus_minus(1.25, 0.5, "+.1f"), plus_minus(1.25, None, ".2f"), plus_minus(None, None, "")
        ('+1.2 ± 0.5', '1.25', '')
    """
    text = "" if value is None else f"{value:{form}}"
    return text if error is None else f"{text} ± {error:{form.lstrip('+')}}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])
