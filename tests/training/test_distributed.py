"""Two ranks on the CPU, under torchrun (`accelerate launch --cpu` would run a single one)."""

import json
import pathlib
import shutil

import distributed_run
import pytest
import torch
from launch import run_on_two_ranks
from trainees import assert_same_weights, by_first_token

from toedit_collate import Journal

HERE = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder with the results of both ranks, and what they printed."""
    if torch.__version__.startswith("2.6.") and not torch.cuda.is_available():
        pytest.skip(
            "a Trainer of several processes on CPUs can't be resumed with torch 2.6, which does "
            "not know the place 'cpu:0' where it loads the optimizer to"
        )
    folder = tmp_path_factory.mktemp("distributed")
    done = run_on_two_ranks(distributed_run, folder, "rank-1.json")
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


@pytest.mark.parametrize("name", ["collator", "callback", "cached"])
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


def test_decisions_of_one_rank_are_known_to_the_other(ranks):
    """Each of the 8 documents is scored once, in the first epoch of two."""
    assert sum(rank["cached"]["documents_scored"] for rank in ranks) == 8


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
    fix = 'accelerator_config={"dispatch_batches": False}'
    for rank in ranks:
        assert fix in rank["dispatched"]["error"]
    _, done = run
    assert done.returncode != 0
    assert "ValueError: accelerate's dispatching loader" in done.stderr
    assert fix in done.stderr


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


SWAPPED = {"epoch": "full, epoch", "save": "shared, save", "resumed": "shared, epoch"}


def steps_of(rows_of_ranks, first=0):
    """The documents of each step, sorted; `rows_of_ranks`: the batches of each rank."""
    num = sum(len(batch) for batch in rows_of_ranks[0]) * len(rows_of_ranks) // 4
    each = [[row for batch in batches for row in batch] for batches in rows_of_ranks]
    size = 4 // len(each)
    steps = [
        sorted(row for rows in each for row in rows[i * size : (i + 1) * size]) for i in range(num)
    ]
    return dict(enumerate(steps, first))


def journal_of(folder):
    journal = Journal(folder / "journal")
    texts = distributed_run.resume_run.TEXTS
    return {
        "replay": {g: [journal.replay(text, g) for text in texts] for g in journal.generations},
        "stats": journal.stats(),
    }


@pytest.mark.parametrize("name", ["epoch", "save"])
def test_swaps_and_journal_are_those_of_one_process(run, ranks, tmp_path, name):
    results = [rank[f"swapped, {name}"] for rank in ranks]
    given = steps_of([r["rows"] for r in results])
    check_as_in_one_process(name, given, results, run[0], tmp_path)


def test_swaps_and_journal_of_a_resumed_run_are_those_of_one_process(run, ranks, tmp_path):
    results = [rank["swapped, resumed"] for rank in ranks]
    firsts, results = ([r[part] for r in results] for part in ("first", "second"))
    given = steps_of([r["rows"] for r in firsts])
    given |= steps_of([r["rows"] for r in results], first=6)
    # The batches of the first six steps cost no pass again.
    assert [r["passes"] for r in firsts + results] == [12] * 4
    check_as_in_one_process("resumed", given, results, run[0], tmp_path)


def check_as_in_one_process(name, given, results, folder, tmp_path):
    """`given`: the documents of each step; `results`: of each rank; `folder`: of all runs."""
    alone = distributed_run.swapped(tmp_path, SWAPPED[name], name)
    assert len(given) == 12
    assert given == steps_of([alone["rows"]])
    assert [r["generation"] for r in results] == [alone["generation"]] * 2
    assert results[0]["prior"] == results[1]["prior"]
    ours, theirs = journal_of(folder / name), journal_of(tmp_path / name)
    assert (
        list(ours["replay"]) == list(theirs["replay"]) == [1, 2, 3, 4, 5, 6][: alone["generation"]]
    )
    assert ours == theirs


def test_two_processes_resumed_on_one(run, ranks, tmp_path):
    kind = "full, 3"
    alone = distributed_run.swapped(tmp_path, kind, "whole")
    stopped = steps_of([rank["swapped, stopped"]["rows"] for rank in ranks])
    shutil.copytree(run[0] / "stopped", tmp_path / "stopped")
    resumed = distributed_run.swapped(tmp_path, kind, "stopped")
    assert stopped | steps_of([resumed["rows"]], first=6) == steps_of([alone["rows"]])
    assert resumed["generation"] == alone["generation"] == 4
    assert journal_of(tmp_path / "stopped") == journal_of(tmp_path / "whole")


# Below the Trainer, with FSDP2.

SHARDED = [
    *(("separate", name) for name in (
        "edits", "logprobs", "fingerprint", "layers alone", "nothing to edit on one rank",
        "another number of passes", "swap state", "swap folder", "swap live",
        "in place state", "in place folder", "in place live", "live weights", "saved",
    )),
    *(("journaled", name) for name in ("rows", "replayed")),
    *(("shared", name) for name in (
        "training undisturbed", "edits", "generation", "frozen", "moved", "saved",
    )),
]  # fmt: skip


@pytest.mark.parametrize(("scenario", "name"), SHARDED)
def test_sharded_models_do_what_whole_ones_do(ranks, scenario, name):
    assert [rank["sharded"][scenario][name] for rank in ranks] == [True, True]


def test_every_finding_is_looked_at(ranks):
    assert {(s, n) for s, names in ranks[0]["sharded"].items() for n in names} == set(SHARDED)
