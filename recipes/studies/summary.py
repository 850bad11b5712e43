"""The tables of a study: means over seeds with standard errors, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

from common.comparison import compare, markdown, plus_minus

from .settings import Study, describe

Result = dict[str, Any]
Value = Callable[[Result], float]

SMALLEST = 0.02  # nats; a difference below it is not worth a method
# 97.5 % points of Student's t with one, two, ... degrees of freedom.
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23,
            2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09, 2.09)  # fmt: skip


def counts_from(error: float | None, num_seeds: int) -> float:
    """How large a difference with this standard error has to be to count, nats.

    That is beyond 95 % of Student's t and `SMALLEST`. A study that saw no such difference can only
    have missed a smaller one.

    Example:
        >>> counts_from(0.01, 3), counts_from(0.001, 3), counts_from(None, 1)
        (0.043, 0.02, inf)
    """
    if error is None:
        return math.inf
    return max(_STUDENT[min(num_seeds - 2, len(_STUDENT) - 1)] * error, SMALLEST)


def summarize(study: Study, results: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """A row of the table for each arm: `measures`, by name, are those of `compare`.

    Args:
        study: whose arms.
        results: of each arm, one for each seed.
    """
    first = next(iter(results.values()))
    values: dict[str, Value] = {
        "test loss": lambda one: one["test"]["loss"],
        "best epoch": lambda one: one["best_epoch"],
        "calibration error": lambda one: one["test"]["ece"],
        "last validation loss": lambda one: one["validation"][-1],
        "seconds": lambda one: one["seconds"],
        **_losses_on_others(first[0]),
    }
    rows = []
    for arm, found in results.items():
        edits = [one["edit"] for one in found if "edit" in one]
        rows.append(
            {
                "arm": arm,
                "settings": found[0]["settings"],
                "trials": len(study.arms[arm]),
                "seeds": [one["seed"] for one in found],
                "changed": fmean(e["changed"] / e["scored"] for e in edits) if edits else None,
                "measures": _measures(values, found, first),
            }
        )
    return rows


def _measures(
    values: dict[str, Value], found: list[Result], first: list[Result]
) -> dict[str, dict[str, float | None]]:
    return {
        name: compare(
            {one["seed"]: value(one) for one in found}, {one["seed"]: value(one) for one in first}
        )
        for name, value in values.items()
    }


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
    table = [["arm", "changed", "test loss", "difference", "would count from",
              "after the last epoch", "best epoch", "calibration error", *others]]  # fmt: skip
    for row in rows:
        measures = row["measures"]
        test = measures["test loss"]
        bound = counts_from(test["difference_error"], len(row["seeds"]))
        difference = plus_minus(test["difference"], test["difference_error"], "+.3f")
        if abs(test["difference"]) > bound:
            difference = f"**{difference}**"
        limit = f"{bound:.3f}" if math.isfinite(bound) else ""
        cells = [
            row["arm"],
            "" if row["changed"] is None else f"{row['changed']:.2%}",
            _mean(test),
            *(["", ""] if row is rows[0] else [difference, limit]),
            f"{measures['last validation loss']['mean']:.3f}",
            f"{measures['best epoch']['mean']:.1f}",
            _mean(measures["calibration error"]),
            *(_mean(measures[name]) for name in others),
        ]
        table.append(cells)
    return "\n".join(
        [
            markdown(table),
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
    groups: dict[tuple[str, int], list[Result]] = {}
    for one in results:
        groups.setdefault((one["arm"], one["generation"]), []).append(one)
    return [
        {
            "arm": arm,
            "generation": generation,
            "seeds": [one["seed"] for one in found],
            "measures": _measures(values, found, []),
        }
        for (arm, generation), found in groups.items()
    ]


def format_generations(rows: list[dict[str, Any]]) -> str:
    """The table of a study over generations, in Markdown."""
    table = [["arm", "generation", "test loss", "rarest tenth", "changed", "differs from real",
              "bigram entropy, bits", "distinct bigrams"]]  # fmt: skip
    for row in rows:
        measures = row["measures"]
        shares = (measures[name]["mean"] for name in ("changed", "differs"))
        cells = [row["arm"], str(row["generation"])]
        cells += [_mean(measures[name]) for name in ("test loss", "rarest tenth")]
        cells += ["" if math.isnan(share) else f"{share:.2%}" for share in shares]
        distinct = measures["distinct bigrams"]["mean"]
        table.append([*cells, _mean(measures["bigram entropy"]), f"{distinct:.1%}"])
    return "\n".join(
        [
            markdown(table),
            "",
            "Losses are nats per token, means over seeds ± standard errors. `rarest tenth`: tokens "
            "of the rarest tenth of the real text. The other columns are of the rows that the "
            "generation was trained on: the share of tokens that the last edit changed (as the "
            "paper's Table 9 has it), and of those that are not what they were in the real text.",
        ]
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value  # as JSON has it where there was no such token


def _mean(measure: dict[str, float | None], form: str = ".3f") -> str:
    return plus_minus(measure["mean"], measure["standard_error"], form)
