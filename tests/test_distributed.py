"""Two ranks on the CPU, under torchrun (`accelerate launch --cpu` would run a single one)."""

import json
import os
import pathlib
import subprocess
import sys

import distributed_run
import pytest
import torch
from training import assert_same_weights, by_first_token

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder with the results of both ranks, and what they printed."""
    folder = tmp_path_factory.mktemp("distributed")
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, str(HERE / "distributed_run.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if not (folder / "rank-1.json").exists():
        pytest.fail(f"the ranks did not finish:\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}")
    return folder, done


@pytest.fixture(scope="module")
def ranks(run):
    return [json.loads((run[0] / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same in this process, by itself."""
    return distributed_run.edited(tmp_path_factory.mktemp("alone"))


def edits(rows, num_documents):
    """Each epoch's documents by their first token."""
    half = len(rows) // 2
    epochs = [by_first_token(rows[:half]), by_first_token(rows[half:])]
    assert all(len(epoch) == num_documents for epoch in epochs)
    return epochs


def edits_of_both(ranks, name, num_documents=8):
    first, second = (edits(rank[name]["rows"], 4) for rank in ranks)
    merged = [{**a, **b} for a, b in zip(first, second, strict=True)]
    assert all(len(epoch) == num_documents for epoch in merged)
    return merged


@pytest.mark.parametrize("name", ["collator", "callback"])
def test_edits_are_those_of_one_process(ranks, alone, name):
    assert edits_of_both(ranks, name) == edits(alone["rows"], 8)
    originals = by_first_token(distributed_run.TEXTS)
    assert edits(alone["rows"], 8)[0] != originals


@pytest.mark.parametrize("name", ["collator", "callback"])
def test_evaluation_is_never_edited(ranks, name):
    for rank in ranks:
        assert len(rank[name]["evaluated"]) == 4
        assert all(row in distributed_run.HELD_OUT for row in rank[name]["evaluated"])
        assert len(rank[name]["eval"]) == 2
        assert rank[name]["eval"] == rank["plain"]["eval"]


def test_metrics_are_of_both_ranks(ranks, alone):
    first, second = (rank["callback"] for rank in ranks)
    assert first["logged"] == second["logged"]
    assert len(first["logged"]) == 4
    for ours, theirs in zip(first["logged"], alone["logged"], strict=True):
        assert ours["toedit/selected_share"] == theirs["toedit/selected_share"]
        assert ours["toedit/changed_share"] == theirs["toedit/changed_share"]
    # Each rank counts its own documents.
    assert first["stats"]["scored"] != second["stats"]["scored"]
    both = {key: first["stats"][key] + second["stats"][key] for key in ("scored", "changed")}
    assert both == {key: alone["stats"][key] for key in both}


def test_an_odd_number_of_documents(ranks):
    """accelerate repeats documents to fill the last step; their edits are the same."""
    first, second = (rank["odd"] for rank in ranks)
    assert first["logged"] == second["logged"]
    assert len(first["logged"]) == 4
    rows = first["rows"] + second["rows"]
    assert len(rows) == 2 * 8
    assert len({tuple(row) for row in rows}) == 2 * 7


def test_a_stream_that_each_rank_reads(ranks, alone):
    rows = ranks[0]["stream"]["rows"] + ranks[1]["stream"]["rows"]
    assert by_first_token(rows) == edits(alone["rows"], 8)[0]


def test_the_dispatching_loader_is_refused(run, ranks):
    mend = 'accelerator_config={"dispatch_batches": False}'
    for rank in ranks:
        assert mend in rank["dispatched"]["error"]
    _, done = run
    assert done.returncode != 0
    assert "RuntimeError: accelerate's dispatching loader" in done.stderr
    assert mend in done.stderr


@pytest.mark.parametrize("more", ["", ", checkpointing"])
def test_a_shared_prior_leaves_training_bit_for_bit(run, ranks, more):
    folder, _ = run
    saved = []
    for rank in ranks:
        plain, idle = rank[f"shared, plain{more}"], rank[f"shared, idle{more}"]
        assert idle["passes"] == idle["stats"]["batches"] == 8
        assert idle["stats"]["changed"] == 0
        assert idle["losses"] == plain["losses"]
        saved += [torch.load(folder / each["weights"]) for each in (plain, idle)]
    for other in saved[1:]:
        assert_same_weights(other, saved[0])
    moved = [p.abs().max() for name, p in saved[0].items() if "lora_B" in name]
    assert min(moved) > 0


def test_a_shared_prior_that_edits_keeps_ranks_in_step(run, ranks):
    folder, _ = run
    first, second = (rank["shared, edited"] for rank in ranks)
    assert first["stats"]["changed"] > 0
    assert second["stats"]["changed"] > 0
    assert_same_weights(*(torch.load(folder / each["weights"]) for each in (first, second)))
    assert first["losses"] != ranks[0]["shared, plain"]["losses"]
