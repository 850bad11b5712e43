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


def summarize(reports: Sequence[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """Bring the runs of each policy together.

    Args:
        reports: of the runs, as `RunReport` has them.
        baseline: name of the policy that the others are compared with.

    Returns:
        For each policy, in the order of the reports: `policy`, `seeds`, `selected_share` and
        `changed_share` (means), and `measures`: name -> `mean`, `standard_error` (of the mean,
        over seeds), `difference` (mean of the policy minus the baseline, seed by seed) and
        `difference_error` (its standard error). None where there is no such number: a standard
        error takes two seeds.
    """
    by_policy: dict[str, dict[int, dict[str, Any]]] = {}
    for report in reports:
        by_policy.setdefault(report["policy"], {})[report["seed"]] = report
    base = {seed: _measures(report) for seed, report in by_policy.get(baseline, {}).items()}
    rows = []
    for policy, runs in by_policy.items():
        own = {seed: _measures(report) for seed, report in runs.items()}
        names = list(dict.fromkeys(name for values in own.values() for name in values))
        measures = {}
        for name in names:
            values = [values[name] for values in own.values() if name in values]
            pairs = [
                own[seed][name] - base[seed][name]
                for seed in own
                if policy != baseline
                and name != LOSS
                and name in own[seed]
                and name in base.get(seed, {})
            ]
            measures[name] = {
                "mean": statistics.fmean(values),
                "standard_error": standard_error(values),
                "difference": statistics.fmean(pairs) if pairs else None,
                "difference_error": standard_error(pairs),
            }
        edits = [report["edit"] for report in runs.values() if report["edit"]]
        rows.append(
            {
                "policy": policy,
                "seeds": list(runs),
                **{
                    name: statistics.fmean(e[name] for e in edits) if edits else None
                    for name in ("selected_share", "changed_share")
                },
                "measures": measures,
            }
        )
    return rows


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


def _measures(report: dict[str, Any]) -> dict[str, float]:
    measures = {LOSS: report["train"]["loss"]} if "loss" in report["train"] else {}
    measures |= {f"perplexity {name}": value for name, value in report["held_out"].items()}
    for task, metrics in report["tasks"].items():
        # The harness has a standard error over questions; ours is over seeds.
        measures |= {f"{task} {n}": v for n, v in metrics.items() if not n.endswith("_stderr")}
    return measures


def format_comparison(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table; errors are standard errors over the seeds."""
    names = list(dict.fromkeys(name for row in rows for name in row["measures"]))
    compared = any(m["difference"] is not None for r in rows for m in r["measures"].values())
    header = ["policy", "seeds", "selected", "changed"]
    for name in names:
        header += [name, "difference"] if compared and name != LOSS else [name]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for row in rows:
        cells = [row["policy"].replace("|", r"\|"), str(len(row["seeds"]))]
        cells += [_share(row["selected_share"], 2), _share(row["changed_share"], 4)]
        for name in names:
            measure = row["measures"].get(name)
            cells.append(
                "" if measure is None else _value(measure["mean"], measure["standard_error"])
            )
            if compared and name != LOSS:
                missing = measure is None or measure["difference"] is None
                cells.append(
                    ""
                    if missing
                    else _value(measure["difference"], measure["difference_error"], sign="+")
                )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}%}"


def _value(value: float, error: float | None, sign: str = "") -> str:
    text = f"{value:{sign}.4f}"
    return text if error is None else f"{text} ± {error:.4f}"
