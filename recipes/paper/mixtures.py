"""Pretrain on mixtures of human and synthetic text, and draw perplexity by synthetic share.

python recipes/paper/mixtures.py --config recipes/configs/pretrain_gpt2_124m.yaml \
    --output runs/mixtures_gpt2 --launch "accelerate launch --config_file FILE" --table 1 --table 13

Trains one model for each share (section 2.1, Figures 2, 7 and 8), without editing. A share that has
its metrics is not trained again, and one that was killed goes on at its last checkpoint. Further
`--field value` go to pretrain.py. `--table` also runs evaluate.py on each model.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes: `common`, `paper`

from common.figures import check_can_draw, color_of, log_scale, new_figure, save_figure

from paper.table import read_run
from toedit_collate.config.console import run_guarded
from toedit_collate.data.files import write_json
from toedit_collate.errors import UnusableError

RECIPES = Path(__file__).resolve().parents[1]
SHARES = [0.0, 0.25, 0.5, 0.75, 1.0]


def make_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=__doc__.partition("\n\n")[2],
    )  # fmt: skip
    add = parser.add_argument
    add("--config", required=True, help="of pretrain.py")
    add("--output", type=Path, required=True, help="folder of the five runs and the figure")
    add("--shares", type=float, nargs="+", default=SHARES, help="synthetic shares, 0 to 1")
    add("--launch", default=sys.executable, help="what starts pretrain.py; default: this Python")
    add("--table", action="append", default=[], help="evaluate each model for this table, too")
    return parser


def train(args: argparse.Namespace, fields: Sequence[str]) -> dict[float, dict[str, Any]]:
    """Train and evaluate what is missing; returns what was measured of each share's run."""
    runs = {}
    for share in args.shares:
        folder = args.output / f"synthetic-{share:g}"
        if not (folder / "metrics.json").is_file():
            own = ["--synthetic_fraction", f"{share:g}", "--edit_policy", "none"]
            own += ["--output_dir", str(folder), "--resume_from_checkpoint", "true"]
            script = str(RECIPES / "pretrain.py")
            _start([*shlex.split(args.launch), script, "--config", args.config, *fields, *own])
        if args.table and not (folder / "evaluation.json").is_file():
            tables = [word for number in args.table for word in ("--table", number)]
            _start([sys.executable, str(RECIPES / "paper" / "evaluate.py"), str(folder), *tables])
        runs[share] = read_run(folder)
    return runs


def _start(words: list[str]) -> None:
    print(shlex.join(words), flush=True)
    if status := subprocess.run(words).returncode:
        raise UnusableError(f"{shlex.join(words)} ended with status {status}; see its output above")


def draw(runs: dict[float, dict[str, Any]]) -> Any:
    """Training loss (Figure 2A) and perplexity of each held-out set (2B) by synthetic share."""
    figure, (left, right) = new_figure(columns=2)
    percent = [100 * share for share in runs]
    left.plot(percent, [run["train"]["loss"] for run in runs.values()], "o-", color=color_of(0))
    left.set_ylabel("training loss, nats per token")
    names = list(next(iter(runs.values())).get("held_out", {}))
    for number, name in enumerate(names):
        values = [run["held_out"][name] for run in runs.values()]
        right.plot(percent, values, "o-", color=color_of(number), label=name)
    right.set_ylabel("perplexity per token")
    log_scale(right, y=True, steps=(1.0, 2.0, 5.0))
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.set_xlabel("synthetic share of the tokens, %")
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    args, fields = make_parser().parse_known_args(argv)

    def run() -> None:
        check_can_draw()
        if any(not 0 <= share <= 1 for share in args.shares):
            raise UnusableError(f"--shares must lie between 0 and 1, got {args.shares}")
        runs = train(args, fields)
        write_json(
            args.output / "mixtures.json", {f"{share:g}": run for share, run in runs.items()}
        )
        for path in save_figure(draw(runs), args.output, "mixtures"):
            print(path)

    return run_guarded("mixtures.py", run)


if __name__ == "__main__":
    sys.exit(main())
