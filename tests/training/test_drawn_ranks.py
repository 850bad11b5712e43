"""Labels of many draws on two ranks: DDP in both trainers, and FSDP2 below them."""

import json

import drawn_run
import pytest
import torch
from launch import run_on_two_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    run_on_two_ranks(drawn_run, folder, "rank-1.json")
    return folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["Trainer", "SFTTrainer"])
def test_ddp_learns_what_one_process_learns(run, tmp_path, kind):
    """Four rows of different lengths a step: the mean is over all labels of both ranks."""
    folder, ranks = run
    alone = drawn_run.ddp(tmp_path, kind)
    for rank in ranks:
        assert rank[kind] == pytest.approx(alone, abs=1e-5)
    expected = torch.load(tmp_path / f"{kind}-alone.pt")
    for rank in (0, 1):
        ours = torch.load(folder / f"{kind}-{rank}.pt")
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", ["fsdp", "fsdp, head alone"])
def test_fsdp2_averages_the_gradients_of_both_ranks(run, case):
    _, ranks = run
    for rank in ranks:
        assert max(rank[case].values()) < 1e-6
