"""recipes/paper/mixtures.py: what it starts, what it skips, and the figure."""

from __future__ import annotations

import json
import sys

import pytest
from paper import mixtures
from paper.mixtures import main

METRICS = {"train": {"loss": 3.0}, "held_out": {"c4": 12.0}}


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The commands that are started; each of pretrain.py writes metrics."""

    def start(words):
        commands.append(words)
        if "--output_dir" in words:
            folder = tmp_path / words[words.index("--output_dir") + 1]
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text(json.dumps(METRICS))

    commands: list[list[str]] = []
    monkeypatch.setattr(mixtures, "_start", start)
    return commands


def test_one_run_for_each_share(started, tmp_path, capsys):
    words = ["--config", "c.yaml", "--output", str(tmp_path), "--launch", "accelerate launch x"]
    words += ["--shares", "0", "0.5", "--max_steps", "7"]
    assert main(words) == 0
    first, second = started
    assert first[:3] == ["accelerate", "launch", "x"]
    line = " ".join(second)
    assert "pretrain.py --config c.yaml --max_steps 7 --synthetic_fraction 0.5" in line
    assert "--edit_policy none" in line
    made = {path.name for path in tmp_path.iterdir()}
    assert {"mixtures.png", "mixtures.svg", "mixtures.json", "synthetic-0"} <= made
    assert main([*words, "--table", "13"]) == 0  # nothing is trained again
    assert [one[0] for one in started[2:]] == [sys.executable] * 2
    assert started[3][-2:] == ["--table", "13"]


def test_refusals(tmp_path, capsys):
    words = ["--config", "c.yaml", "--output", str(tmp_path)]
    assert main([*words, "--shares", "25"]) == 2
    assert "between 0 and 1" in capsys.readouterr().err
    assert main([*words, "--launch", "false"]) == 2
    assert "status 1" in capsys.readouterr().err
