"""The table of docs/recipes.md: what `toedit plan` says of each config on the cards it names.

Usage: python benchmarks/plan_table.py [NAME ...]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

from toedit_collate.commands.plan import (
    CARDS,
    Plan,
    Sharding,
    duration,
    make_plan,
    read_run,
    read_sharding,
)
from toedit_collate.config.console import quiet

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
_CARDS = {"80": "a100-80gb", "40": "a100-40gb", "24": "rtx4090"}
HEAD = "| config | cards | GiB per card | step | edit pass |\n| --- | --- | --- | --- | --- |"


def place_of(path: Path) -> tuple[str, Sharding]:
    """The card and the sharding that the header of a config names: cards of 80 GB, ddp.yaml."""
    text = path.read_text()
    card = re.search(r"# for: .*?(\w+) cards? of (\d+)", text)
    if card is None:
        return "cpu", Sharding()
    launcher = re.search(r"accelerate/\w+\.yaml", text)
    number = {"one": 1}.get(card[1]) or int(card[1])
    return _CARDS[card[2]], read_sharding(CONFIGS / launcher[0] if launcher else None, number)


def row(path: Path) -> str:
    """One line of the table."""
    card, sharding = place_of(path)
    plan: Plan = make_plan(read_run(path), CARDS[card], sharding, 0.4)
    step = sum(plan.seconds.values())
    kind = f", {sharding.kind}" if sharding.processes > 1 else ""
    share = f"{plan.seconds['edit pass'] / step:.0%}"
    cards = f"{sharding.processes} x {card}{kind}"
    return f"| `{path.stem}` | {cards} | {plan.peak / 2**30:.1f} | {duration(step)} | {share} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    configs = sorted(path.stem for path in CONFIGS.glob("*.yaml") if "_tiny" not in path.stem)
    names = sys.argv[1:] or configs
    print(HEAD)
    for name in names:
        with quiet():
            print(row(CONFIGS / f"{name}.yaml"), flush=True)
