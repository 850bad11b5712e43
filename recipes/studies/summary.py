"""The tables of a study: means over seeds with standard errors, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from common.comparison import standard_error

from .settings import Study, describe

Result = dict[str, Any]
Value = Callable[[Result], float]

SMALLEST = 0.02  # nats; a difference below it is not worth a method
# 97.5 % points of Student's t with one, two, ... degrees of freedom.
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23,
            2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09, 2.09)  # fmt: skip


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error; NaN for the error of one value.

    Example:
        >>> mean_and_error([1.0, 3.0])
        (2.0, 1.0)
    """
    error = standard_error(values)
    return fmean(values), math.nan if error is None else error


def counts_from(error: float, num_seeds: int) -> float:
    """How large a difference with this standard error has to be to count, nats.

    That is beyond 95 % of Student's t and `SMALLEST`. A study that saw no such difference can only
    have missed a smaller one.

    Example:
        >>> counts_from(0.01, 3), counts_from(0.001, 3), counts_from(0.01, 1)
        (0.043, 0.02, inf)
    """
    if num_seeds < 2:
        return math.inf
    return max(_STUDENT[min(num_seeds - 2, len(_STUDENT) - 1)] * error, SMALLEST)


def summarize(study: Study, results: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """A row of the table for each arm.

    Args:
        study: whose arms.
        results: of each arm, one for each seed, in the order of the seeds.
    """
    first = next(iter(results.values()))
    values: dict[str, Value] = {
        "test loss": lambda one: one["test"]["loss"],
        "best epoch": lambda one: one["best_epoch"],
        "calibration error": lambda one: one["test"]["ece"],
        "memorised spans": lambda one: one["memorised"],
        "last validation loss": lambda one: one["validation"][-1],
        "seconds": lambda one: one["seconds"],
        **_losses_on_others(first[0]),
    }
    if "exact_match" in first[0]:
        values["exact match"] = lambda one: one["exact_match"]
    rows = []
    for arm, found in results.items():
        measures = {}
        for name, value in values.items():
            mean, error = mean_and_error([value(one) for one in found])
            pairs = zip(found, first, strict=False)
            difference = mean_and_error([value(a) - value(b) for a, b in pairs])
            measures[name] = {
                "mean": mean, "standard_error": error,
                "difference": difference[0], "difference_error": difference[1],
            }  # fmt: skip
        edits = [one["edit"] for one in found if "edit" in one]
        rows.append(
            {
                "arm": arm,
                "settings": found[0]["settings"],
                "trials": len(study.arms[arm]),
                "seeds": [one["seed"] for one in found],
                "changed": fmean(e["changed"] / e["scored"] for e in edits) if edits else None,
                "measures": measures,
            }
        )
    return rows


def _losses_on_others(example: Result) -> dict[str, Value]:
    return {
        f"{name} loss": lambda one, name=name: one["others"][name]  # type: ignore[misc]
        for name in example["others"]
    }


def losses_on_others(row: dict[str, Any]) -> list[str]:
    """Which measures of a row are losses on other text than the study's own."""
    own = ("test loss", "last validation loss")
    return [name for name in row["measures"] if name.endswith(" loss") and name not in own]


def format_study(rows: list[dict[str, Any]]) -> str:
    """The table in Markdown."""
    others = losses_on_others(rows[0])
    head = ["arm", "changed", "test loss", "difference", "would count from",
            "after the last epoch", "best epoch", "calibration error", "memorised",
            *others]  # fmt: skip
    has_answers = "exact match" in rows[0]["measures"]
    body = []
    for row in rows:
        measures = row["measures"]
        test, ece = measures["test loss"], measures["calibration error"]
        bound = counts_from(test["difference_error"], len(row["seeds"]))
        difference = _pm(test["difference"], test["difference_error"], "+")
        bold = abs(test["difference"]) > bound
        compared = [f"**{difference}**" if bold else difference,
                    f"{bound:.3f}" if math.isfinite(bound) else ""]  # fmt: skip
        cells = [
            row["arm"],
            "" if row["changed"] is None else f"{row['changed']:.2%}",
            _pm(test["mean"], test["standard_error"]),
            *(["", ""] if row is rows[0] else compared),
            f"{measures['last validation loss']['mean']:.3f}",
            f"{measures['best epoch']['mean']:.1f}",
            _pm(ece["mean"], ece["standard_error"]),
            f"{measures['memorised spans']['mean']:.2%}",
            *(_pm(measures[name]["mean"], measures[name]["standard_error"]) for name in others),
        ]
        if has_answers:
            right = measures["exact match"]
            cells.append(f"{right['mean']:.1%} ± {right['standard_error']:.1%}")
        body.append(cells)
    return "\n".join(
        [
            _markdown([head + ["exact match"] * has_answers, *body]),
            "",
            f"Losses are nats per token, means of {len(rows[0]['seeds'])} seeds ± standard errors; "
            "the difference is from the first arm, paired by seed, bold where it is beyond 95 % of "
            f"Student's t and {SMALLEST} nats, from which on it counts. `after the last epoch` is "
            "the validation loss at the end; all else is measured at the epoch that is best on "
            "validation.",
            "",
            "Settings that were kept:",
            *(f"- {row['arm']}: {describe(row['settings'])}" for row in rows),
        ]
    )


def summarize_generations(results: list[Result]) -> list[dict[str, Any]]:
    """A row for each arm and generation."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for one in results:
        groups.setdefault((one["arm"], one["generation"]), []).append(one)
    values: dict[str, Value] = {
        "test loss": lambda one: one["test"]["loss"],
        "rarest tenth": lambda one: _number(one["test"]["deciles"][-1]),
        "changed": lambda one: _number(one.get("changed")),
        "differs": lambda one: one["differs_from_real"],
        "bigram entropy": lambda one: one["rows"]["bigram_entropy_bits"],
        "distinct bigrams": lambda one: one["rows"]["distinct_bigrams"],
        "top 64 bigrams": lambda one: one["rows"]["top_64_bigrams"],
        **_losses_on_others(results[0]),
    }
    return [
        {
            "arm": arm,
            "generation": generation,
            "seeds": [one["seed"] for one in found],
            "measures": {
                name: mean_and_error([value(one) for one in found])
                for name, value in values.items()
            },
        }
        for (arm, generation), found in groups.items()
    ]


def format_generations(rows: list[dict[str, Any]]) -> str:
    """The table of a study over generations, in Markdown."""
    head = ["arm", "generation", "test loss", "rarest tenth", "changed", "differs from real",
            "bigram entropy, bits", "distinct bigrams"]  # fmt: skip
    body = []
    for row in rows:
        measures = row["measures"]
        shares = (measures[name][0] for name in ("changed", "differs"))
        cells = [row["arm"], str(row["generation"])]
        cells += [_pm(*measures[name]) for name in ("test loss", "rarest tenth")]
        cells += ["" if math.isnan(share) else f"{share:.2%}" for share in shares]
        cells += [_pm(*measures["bigram entropy"]), f"{measures['distinct bigrams'][0]:.1%}"]
        body.append(cells)
    return "\n".join(
        [
            _markdown([head, *body]),
            "",
            "Losses are nats per token, means over seeds ± standard errors. `rarest tenth`: tokens "
            "of the rarest tenth of the real text. The other columns are of the rows that the "
            "generation was trained on: the share of tokens that the last edit changed (as the "
            "paper's Table 9 has it), and of those that are not what they were in the real text.",
        ]
    )


def _markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])


def _number(value: float | None) -> float:
    return math.nan if value is None else value  # as JSON has it where there was no such token


def _pm(value: float, error: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if math.isnan(error) else f"{value:{sign}.3f} ± {error:.3f}"
