"""recipes/paper/theory.py: its table, words and files."""

import json

import pytest
from paper.theory import main

QUICK = ("--runs", "60", "--edits", "3", "--samples", "30", "--dimension", "4")


def test_it_prints_the_table_and_when_the_bound_holds(capsys):
    assert main([*QUICK]) == 0
    printed = capsys.readouterr().out
    assert "d = 4, T = 30, sigma = 1, 3 edits, 60 runs" in printed
    assert "full replacement" in printed
    assert "equal, disjoint" in printed
    assert "Eq. 28" in printed
    assert "Twice the error of real data (Theorem 2, Eq. 6) is exceeded in: full repl" in printed


def test_files(capsys, tmp_path):
    assert main([*QUICK, "--output", str(tmp_path / "new" / "folder")]) == 0
    folder = tmp_path / "new" / "folder"
    assert sorted(p.name for p in folder.iterdir()) == ["theory.json", "theory.png", "theory.svg"]
    record = json.loads((folder / "theory.json").read_text())
    assert record["problem"]["samples"] == 30
    full = record["arms"][1]
    assert full["name"] == "full replacement"
    assert full["closed_form"] == 4
    assert len(full["mean"]) == len(full["standard_error"]) == 4
    assert record["arms"][0]["bound_of_eq_7"] is None
    assert set(record["total_share"]["arms"]) == set(record["total_share"]["within_twice"])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--samples", "7", "samples must be at least"), ("--noise", "-1", "noise must be a finite")],
)
def test_refusals(capsys, option, value, message):
    assert main([*QUICK, option, value]) == 2
    assert message in capsys.readouterr().err
