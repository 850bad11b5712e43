"""Evaluate a saved model on the tasks and held-out sets of the paper's tables.

python recipes/paper/evaluate.py MODEL --table 2a [--table 13]

MODEL is a run's folder, one of its checkpoints, a folder with a LoRA adapter, or a hub id. The
results are added to MODEL/evaluation.json (a hub id needs --output), which table.py reads.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes: `common`, `paper`

from common import RunArguments, load_rows
from common.tasks import check_tasks, evaluate_saved

from paper.perplexity import perplexity
from paper.table import read_tables
from toedit_collate import Prior
from toedit_collate.config.console import run_guarded
from toedit_collate.data import parse_source
from toedit_collate.data.files import write_json
from toedit_collate.errors import UnusableError

HELD_OUT = Path(__file__).parent / "held_out.yaml"
MAX_LENGTH = 2048  # of a window, where the model can read as many tokens


def make_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", help="folder of a run, a checkpoint or an adapter; or a hub id")
    tables = [number for number, table in read_tables().items() if sets_of(table)]
    add("--table", action="append", required=True, choices=tables, help="may be repeated")
    add("--output", type=Path, help="folder of evaluation.json; default: MODEL")
    add("--limit", type=int, help="only the first N questions of a task, and texts of a set")
    add("--batch-size", type=int, default=8)
    add("--max-length", type=int, help=f"of a window; default: the model's, at most {MAX_LENGTH}")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--include-path", help="folder with more tasks of the harness")
    add("--local", type=Path, metavar="DIR", help="read DIR/NAME.jsonl instead of the hub's sets")
    return parser


def sets_of(table: dict[str, Any]) -> tuple[list[str], list[str]] | None:
    """The tasks of the harness and the held-out sets that a table needs; None: neither."""
    measures = [*table.get("measures", []), *table.get("sets", [])]
    pairs = [measure.split("/", 1) for measure in measures]
    perplexities = ("held_out", "by_document")
    tasks = list(dict.fromkeys(kind for kind, _ in pairs if kind not in perplexities))
    sets = list(dict.fromkeys(name for kind, name in pairs if kind in perplexities))
    return (tasks, sets) if measures else None


def adapter_base(model: str) -> str | None:
    """The base of a saved LoRA adapter; None: the folder holds a whole model."""
    path = Path(model) / "adapter_config.json"
    return json.loads(path.read_text())["base_model_name_or_path"] if path.is_file() else None


def texts_of(name: str, entry: dict[str, Any], local: Path | None) -> Iterator[str]:
    """The documents of a held-out set, an entry of `held_out.yaml`."""
    source, subset = entry["source"], entry.get("subset")
    if local is not None:
        source = str(local / ("pile.jsonl" if subset else f"{name}.jsonl"))
    for row in load_rows(*parse_source(source), streaming=True, option=name):
        if subset is None or row["meta"]["pile_set_name"] == subset:
            yield row["text"]


def measure_sets(
    args: argparse.Namespace, base: str | None, names: Iterable[str]
) -> Iterator[tuple[str, Any]]:
    """Perplexities of the model (an adapter, if it has a `base`) on the named sets."""
    adapter = None if base is None else args.model
    model = Prior.from_pretrained(base or args.model, adapter=adapter, device=args.device)
    positions = getattr(model.model.config, "max_position_embeddings", None) or MAX_LENGTH
    length = args.max_length or min(positions, MAX_LENGTH)
    entries = yaml.safe_load(HELD_OUT.read_text(encoding="utf-8"))
    for name in names:
        texts = islice(texts_of(name, entries[name], args.local), args.limit)
        yield name, perplexity(model, texts, max_length=length, batch_size=args.batch_size)


def evaluate(args: argparse.Namespace) -> None:
    """Measure what the tables need, and write it after each step."""
    if args.output is None and not Path(args.model).is_dir():
        raise UnusableError(f"{args.model} is no folder here; name one for the results by --output")
    tables, base = read_tables(), adapter_base(args.model)
    found = [sets_of(tables[number]) or ([], []) for number in args.table]
    tasks = list(dict.fromkeys(task for own, _ in found for task in own))
    sets = list(dict.fromkeys(name for _, own in found for name in own))
    run_args = RunArguments(eval_tasks=tasks, eval_tasks_path=args.include_path if tasks else None)
    if args.local is not None:
        os.environ["ADAPTLLM_DATA"] = str(args.local)
    check_tasks(run_args)  # before the model is loaded
    path = (args.output or Path(args.model)) / "evaluation.json"
    report = json.loads(path.read_text()) if path.is_file() else {"model": args.model}
    for part in ("tasks", "held_out", "by_document", "counts"):
        report.setdefault(part, {})
    for name, values in measure_sets(args, base, sets) if sets else ():
        report["held_out"][name] = values["per_token"]
        report["by_document"][name] = {
            "perplexity": values["per_document"], "stderr": values["stderr"]
        }  # fmt: skip
        report["counts"][name] = {"tokens": values["tokens"], "documents": values["documents"]}
        print(f"{name}: {values['per_token']:.2f} per token, {values['per_document']:.2f} per "
              f"document ({values['documents']:,})", flush=True)  # fmt: skip
        write_json(path, report)
    if tasks:
        settings = {
            "tasks": tasks, "include_path": args.include_path, "limit": args.limit,
            "batch_size": args.batch_size, "seed": 0,
        }  # fmt: skip
        report["tasks"] |= evaluate_saved(args.model, settings, device=args.device, base=base)
        write_json(path, report)
    print(f"written to {path}")


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return run_guarded("evaluate.py", lambda: evaluate(args))


if __name__ == "__main__":
    sys.exit(main())
