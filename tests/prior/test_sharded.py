"""Priors and trainees that FSDP2 has sharded over two ranks, and what DeepSpeed has partitioned."""

import json

import pytest
import sharded_run
import torch
from conftest import make_llama
from launch import run_on_two_ranks
from peft import get_peft_model
from trainees import IDLE, lora, make_trainer

from toedit_collate import Prior

SCENARIOS = [
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


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if torch.__version__.startswith("2.6.") and not torch.cuda.is_available():
        pytest.skip("FSDP2 of torch 2.6 does not run on CPUs: their stream has no record_event")
    folder = tmp_path_factory.mktemp("sharded")
    run_on_two_ranks(sharded_run, folder, "rank-1.json")
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(("scenario", "name"), SCENARIOS)
def test_as_on_one_rank(found, scenario, name):
    assert [rank[scenario][name] for rank in found] == [True, True]


def test_every_finding_is_looked_at(found):
    assert {(s, n) for s, names in found[0].items() for n in names} == set(SCENARIOS)


class Wrapped(torch.nn.Module):
    pass


Wrapped.__name__ = "FullyShardedDataParallel"


@pytest.mark.parametrize(
    ("spread", "message"),
    [
        (lambda m: setattr(m.lm_head.weight, "ds_id", 0), r"ZeRO-3.*Prior\.from_pretrained"),
        (lambda m: m.add_module("wrapped", Wrapped()), r"FSDP version 1.*fsdp_version: 2"),
    ],
)
def test_what_a_shared_prior_cannot_score_with_is_refused_at_the_start(
    tmp_path, tokenizer, spread, message
):
    model = get_peft_model(make_llama(1), lora())
    prior = Prior.shared(model)
    trainer, _ = make_trainer(
        tmp_path, tokenizer, way="callback", prior=prior, policy=IDLE, model=model
    )
    spread(model.get_base_model())
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("make", [Prior, lambda m: Prior.shared(get_peft_model(m, lora()))])
def test_a_partitioned_prior_is_refused(make):
    model = make_llama()
    model.lm_head.weight.ds_id = 0
    with pytest.raises(ValueError, match=r"partitioned.*Prior\.from_pretrained"):
        make(model)
