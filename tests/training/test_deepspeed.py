"""DeepSpeed ZeRO-2 and ZeRO-3 with a prior that each rank holds whole; needs deepspeed."""

import json

import deepspeed_run
import pytest
from conftest import make_llama
from launch import run_on_two_ranks

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, 3])
def stage(request):
    return request.param


@pytest.fixture(scope="module")
def found(tmp_path_factory, stage):
    folder = tmp_path_factory.mktemp(f"stage-{stage}")
    make_llama().save_pretrained(folder / "model")
    run_on_two_ranks(deepspeed_run, folder, f"stage-{stage}-rank-1.json", str(stage))
    return [json.loads((folder / f"stage-{stage}-rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """DDP."""
    folder = tmp_path_factory.mktemp("stage-0")
    run_on_two_ranks(deepspeed_run, folder, "stage-0-rank-1.json", "0")
    return [json.loads((folder / f"stage-0-rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_generations_and_edits_are_those_of_ddp(found, plain):
    for ours, theirs in zip(found, plain, strict=True):
        assert ours["whole"]["generation"] == 3
        assert ours["whole"]["rows"] == theirs["whole"]["rows"]
        assert ours["whole"]["stats"] == theirs["whole"]["stats"]


def test_the_prior_is_what_was_trained_on_all_ranks(found):
    for rank in found:
        assert rank["whole"]["is the trainee"]
    assert found[0]["whole"]["stats"]["3"]["documents"] == 8


def test_resume(found):
    for rank in found:
        assert rank["second half"]["resumed"]
        both = rank["first half"]["rows"] + rank["second half"]["rows"]
        assert both == rank["whole"]["rows"]
        assert rank["second half"]["generation"] == 3


def test_a_prior_loaded_after_the_arguments_is_whole(found):
    assert all(rank["loaded after"] for rank in found)


def test_a_shared_prior(found, stage):
    for rank in found:
        refused = "" if rank["shared"] is None else rank["shared"]
        assert ("Prior.from_pretrained" in refused) == bool(refused) == (stage == 3)
