"""Sharded and partitioned models that are refused; test_distributed.py has those that work."""

import pytest
import torch
from conftest import make_llama
from peft import get_peft_model
from trainees import IDLE, lora, make_trainer

from toedit_collate import Prior


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
