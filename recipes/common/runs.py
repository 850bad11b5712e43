"""One run, or several that differ in policy and seed: made once each, kept, and compared."""

from __future__ import annotations

import copy
import gc
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import Trainer, TrainingArguments

from toedit_collate.config.arguments import PREFIX, EditArguments
from toedit_collate.data.files import whole, write_json, write_text
from toedit_collate.data.reading import is_local
from toedit_collate.distributed import barrier
from toedit_collate.policy import EditPolicy

from .arguments import RunArguments, as_arguments
from .comparison import LEGEND, format_comparison, summarize

BASELINE = "none"
_COMPARISON = ("compare_baseline", "compare_policies", "seeds")
# A finished run is still the same run when these are other ones.
_IDLE = ("output_dir", "report_to", "resume_from_checkpoint", "logging_steps", "disable_tqdm")


@dataclass
class RunReport:
    """What came of one run of training: the content of `metrics.json`.

    Attributes:
        policy: name of its policy; "none": the data was not edited.
        seed: of the run, and of the policy's draws where several runs are compared.
        folder: of the run.
        train: loss (mean, nats per token with a label; absent where no step was logged), steps,
            epochs, seconds.
        edit: counts and shares of the edit pass, as `ToEditCollator.stats` has them, over all
            ranks, since the run was last resumed; empty without editing.
        held_out: name -> perplexity per token.
        tasks: task of lm-evaluation-harness -> metric -> value.
    """

    policy: str
    seed: int
    folder: str
    train: dict[str, float] = field(default_factory=dict)
    edit: dict[str, float] = field(default_factory=dict)
    held_out: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_text(self) -> str:
        """A few lines for a terminal."""
        units = {"loss": " nats per token", "seconds": " s"}
        lines = [", ".join(f"{n} {v:,.4g}{units.get(n, '')}" for n, v in self.train.items())]
        if self.edit:
            edit = self.edit
            lines.append(
                f"edited: {edit['scored']:,} tokens scored, {edit['selected']:,} selected "
                f"({edit['selected_share']:.2%}), {edit['changed']:,} changed "
                f"({edit['changed_share']:.4%})"
            )
            if "aligned_share" in edit:
                lines.append(
                    f"aligned: {edit['aligned_share']:.1%} of the tokens begin where a token of "
                    "the prior begins, and can be scored"
                )
        for name, value in self.held_out.items():
            lines.append(f"held-out perplexity per token, {name}: {value:.4f}")
        for task, metrics in self.tasks.items():
            lines.append(f"{task}: " + ", ".join(f"{n} {v:.4f}" for n, v in metrics.items()))
        return "\n".join([*filter(None, lines), f"written to {self.folder}"])


RunOnce = Callable[[Any, str, EditPolicy | None], tuple[RunReport, Trainer | None]]


def run_all(
    run_once: RunOnce, args: TrainingArguments, run_args: RunArguments, edit: EditArguments
) -> list[RunReport]:
    """Run once, or once for each policy and seed that is to be compared.

    A single run fills `args.output_dir`. Of several, each has a folder `POLICY/seed-N` in it. Runs
    that are finished are not repeated when the recipe is started again with the same settings. The
    comparison is printed and written to `metrics.json` and `comparison.md`.

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
            own = _with(args, folder / re.sub(r"[^\w.=,-]", "_", name) / f"seed-{seed}", seed)
            if args.run_name:
                own.run_name = f"{args.run_name}-{name}-seed-{seed}"
            known = _finished(own.output_dir, _settings(run_args, drawn, seed))
            reports.append(known or _run(run_once, own, run_args, name, drawn))
    runs = [vars(report) for report in reports]
    summary = summarize(runs, BASELINE)
    if args.should_save:
        table = format_comparison(summary)
        write_json(folder / "metrics.json", {"runs": runs, "comparison": summary})
        write_text(folder / "comparison.md", f"{table}\n\n{LEGEND}")
        print(f"\n{table}\nwritten to {folder}")
    barrier()
    return reports


def _with(args: TrainingArguments, folder: Any, seed: int) -> Any:
    """The same arguments for another folder and seed."""
    own: Any = copy.copy(args)
    own.output_dir, own.seed, own.data_seed = str(folder), seed, seed
    return own


def _run(
    run_once: RunOnce, args: Any, run_args: RunArguments, name: str, policy: EditPolicy | None
) -> RunReport:
    folder = Path(args.output_dir)
    if args.should_save:
        print(f"\n{folder}: policy {name}, seed {args.seed}", flush=True)
        # With config.yaml, the recipe makes this one run again.
        config = {**_given(run_args), **as_arguments(policy, name.partition(",")[0])}
        config |= {"output_dir": args.output_dir, "seed": args.seed}
        write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        write_json(folder / "policy.json", None if policy is None else policy.record())
    report, trainer = run_once(args, name, policy)
    if args.should_save:
        settings = _settings(run_args, policy, args.seed)
        write_json(folder / "metrics.json", {**vars(report), "made_with": settings})
        print(report.as_text(), flush=True)
    if trainer is not None:
        _finish(trainer, run_args)
    barrier()
    return report


def _given(run_args: RunArguments, *without: str) -> dict[str, Any]:
    """The fields that were asked for, but for policies, comparison, and those named."""
    return {
        name: value
        for name, value in run_args.given.items()
        if name not in (*_COMPARISON, *without) and not name.startswith(PREFIX)
    }


def _settings(run_args: RunArguments, policy: EditPolicy | None, seed: int) -> dict[str, Any]:
    """What decides the result of a run, as JSON has it."""
    record = None if policy is None else policy.record()
    content = {"given": _given(run_args, *_IDLE), "policy": record, "seed": seed}
    settings: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return settings


def _finished(folder: str, settings: dict[str, Any]) -> RunReport | None:
    """The report of a run that was made before with the same settings."""
    try:
        content = json.loads((Path(folder) / "metrics.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return RunReport(**content) if content.pop("made_with", None) == settings else None


def _finish(trainer: Any, run_args: RunArguments) -> None:
    """Write the model card, push if that is wanted, and free the memory of the run."""
    name = run_args.given.get("dataset_name")
    dataset = None if name is None or is_local(name) else name  # the card links to the hub
    if trainer.args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset)
    elif hasattr(trainer, "create_model_card"):
        model_name = Path(trainer.args.output_dir).resolve().name
        trainer.create_model_card(model_name=model_name, dataset_name=dataset)
    # These trackers keep one run for each process: the next run of a comparison needs its own.
    for tracker in ("wandb", "trackio"):
        if tracker in trainer.args.report_to and trainer.is_world_process_zero():
            __import__(tracker).finish()
    trainer.model = trainer.model_wrapped = trainer.optimizer = None
    trainer.accelerator.free_memory()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_dataset(trainer: Any) -> None:
    """Save the tokenized rows of a run with a journal, which are needed to read the journal.

    Streamed rows are not kept: they may have no end.
    """
    out, rows = Path(trainer.args.output_dir), trainer.train_dataset
    folder = out / "train_dataset"
    if not trainer.args.should_save or folder.exists() or not hasattr(rows, "save_to_disk"):
        return
    with whole(folder, replace=False) as place:
        rows.save_to_disk(str(place))
    tokenizer, data = trainer.processing_class.name_or_path, f"--data {folder}"
    print(
        f"The tokenized data is kept in {folder}. After training, look at the edits by\n"
        f"    toedit inspect --journal {out / 'journal'} {data} --prior {tokenizer}\n"
        "and write the edited rows by\n"
        f"    toedit journal export {out / 'journal'} {data} --output FILE.jsonl",
        flush=True,
    )
