"""One run, or several that differ in policy and seed: made once each, then compared."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from toedit_collate.config.arguments import PREFIX, EditArguments, RunArguments, as_arguments
from toedit_collate.config.run_report import RunReport
from toedit_collate.data.files import write_json, write_text
from toedit_collate.distributed import barrier
from toedit_collate.policy import EditPolicy

from .comparison import LEGEND, format_comparison, summarize
from .finish import finish
from .folder import write_settings

RunOnce = Callable[[Any, str, EditPolicy | None], tuple[RunReport, Trainer | None]]
BASELINE = "none"
_COMPARISON = ("compare_baseline", "compare_policies", "seeds")
# What may differ between two starts without making runs that are finished others.
_IDLE = (
    "output_dir", "num_samples", "report_to", "resume_from_checkpoint", "logging_steps",
    "disable_tqdm",
)  # fmt: skip


def run_all(
    run_once: RunOnce, args: TrainingArguments, run_args: RunArguments, edit: EditArguments
) -> list[RunReport]:
    """Run once, or once for each policy and seed that is to be compared.

    A single run fills `args.output_dir`. Of several, each has a folder `POLICY/seed-N` in it; runs
    that are finished are not made again when the recipe is started again with the same settings,
    and the comparison is printed and written to `metrics.json` and `comparison.md`.

    Args:
        run_once: (args, name of the policy, policy) -> a report, and the Trainer, if there was one;
            policy None: without editing.
        args: of the training.
        run_args: what is compared.
        edit: the policy.
    """
    seeds = run_args.seeds or [args.seed]
    variants = run_args.variants(edit)
    if not run_args.compares:
        ((name, policy),) = variants.items()
        return [_run(run_once, _with(args, args.output_dir, seeds[0]), run_args, name, policy)]
    folder = Path(args.output_dir or ".")
    reports = []
    for seed in seeds:
        for name, policy in variants.items():
            drawn = None if policy is None else policy.replace(seed=seed)
            here = folder / re.sub(r"[^\w.=,-]", "_", name) / f"seed-{seed}"
            known = _finished(here, _settings(run_args, drawn, seed))
            if known is None:
                own = _with(args, str(here), seed)
                if args.run_name:
                    own.run_name = f"{args.run_name}-{name}-seed-{seed}"
                known = _run(run_once, own, run_args, name, drawn)
            reports.append(known)
    runs = [vars(report) for report in reports]
    summary = summarize(runs, BASELINE)
    if args.should_save:
        table = format_comparison(summary)
        content = {"runs": runs, "comparison": summary}
        write_json(folder / "metrics.json", content)
        write_text(folder / "comparison.md", f"{table}\n\n{LEGEND}")
        print(f"\n{table}\nwritten to {folder}")
    barrier()
    return reports


def _with(args: TrainingArguments, folder: str | None, seed: int) -> Any:
    """The same arguments for another folder and seed."""
    own = copy.copy(args)
    own.output_dir, own.seed, own.data_seed = folder, seed, seed
    return own


def _run(
    run_once: RunOnce, args: Any, run_args: RunArguments, name: str, policy: EditPolicy | None
) -> RunReport:
    folder = Path(args.output_dir)
    if args.should_save:
        print(f"\n{folder}: policy {name}, seed {args.seed}", flush=True)
        write_settings(folder, _given(run_args, args, name, policy), args, policy)
    report, trainer = run_once(args, name, policy)
    if args.should_save:
        settings = _settings(run_args, policy, args.seed)
        write_json(folder / "metrics.json", {**vars(report), "made_with": settings})
        print(report.as_text(), flush=True)
    if trainer is not None:
        finish(trainer, run_args)
    barrier()
    return report


def _given(
    run_args: RunArguments, args: Any, name: str, policy: EditPolicy | None
) -> dict[str, Any]:
    """What asks for this one run."""
    own = {
        key: value
        for key, value in run_args.given.items()
        if key not in _COMPARISON and not key.startswith(PREFIX)
    }
    edited = as_arguments(policy, name.partition(",")[0])
    return {**own, **edited, "output_dir": args.output_dir, "seed": args.seed}


def _settings(run_args: RunArguments, policy: EditPolicy | None, seed: int) -> dict[str, Any]:
    """What decides the result of a run, as JSON has it."""
    own = {
        name: value
        for name, value in run_args.given.items()
        if name not in (*_COMPARISON, *_IDLE) and not name.startswith(PREFIX)
    }
    record = None if policy is None else policy.record()
    return json.loads(json.dumps({"given": own, "policy": record, "seed": seed}, default=str))


def _finished(folder: Path, settings: dict[str, Any]) -> RunReport | None:
    """The report of a run that was made before with the same settings."""
    try:
        content = json.loads((folder / "metrics.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    if content.pop("made_with", None) != settings:
        return None
    return RunReport(**content)
