"""The fingerprint: priors that score otherwise have another, the same prior always the same."""

import pytest
import torch
from conftest import make_llama
from peft import LoraConfig, get_peft_model
from trainees import move_adapters
from transformers import CohereConfig, CohereForCausalLM

from toedit_collate import Prior


def tuned(seed=1, **settings):
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj"], **settings})
    return move_adapters(get_peft_model(make_llama(), config), seed)


def one_number(model):
    with torch.no_grad():
        model.model.embed_tokens.weight[77, 13] += 1e-3  # in no small sample
    return model


def two_rows(model):
    weight = model.model.embed_tokens.weight
    with torch.no_grad():
        weight[[70, 71]] = weight[[71, 70]].clone()
    return model


def rescaled(model):
    for module in model.modules():
        if hasattr(module, "scaling") and isinstance(module.scaling, dict):
            module.scaling["default"] *= 2
    return model


def with_pad(model):
    model.config.pad_token_id = 7
    return model


def rope(**settings):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **settings}}


OTHERS = {
    "weights": lambda: make_llama(1),
    "one number": lambda: one_number(make_llama()),
    "two rows": lambda: two_rows(make_llama()),
    "dtype": lambda: make_llama().bfloat16(),
    "rope_theta": lambda: make_llama(**rope(rope_theta=5000.0)),
    "rope scaling": lambda: make_llama(**rope(rope_type="linear", factor=2.0)),
    "epsilon": lambda: make_llama(rms_norm_eps=1e-3),
    "activation": lambda: make_llama(hidden_act="gelu"),
    "adapter": lambda: tuned(),
    "other adapter": lambda: tuned(2),
    "alpha": lambda: tuned(lora_alpha=32),
    "rank-stabilised": lambda: tuned(use_rslora=True),
    "rescaled in memory": lambda: rescaled(tuned()),
}


def test_priors_that_score_otherwise_have_other_fingerprints():
    found = {name: Prior(make()).fingerprint for name, make in OTHERS.items()}
    found["itself"] = Prior(make_llama()).fingerprint
    assert len(set(found.values())) == len(found), found


def test_logit_scale_and_window():
    def cohere(**settings):
        torch.manual_seed(0)
        return CohereForCausalLM(CohereConfig(
            vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, **settings,
        ))  # fmt: skip

    assert Prior(cohere()).fingerprint != Prior(cohere(logit_scale=0.5)).fingerprint


SAME = {
    "again": lambda: make_llama(),
    "how it was trained": lambda: make_llama(attention_dropout=0.3, use_cache=False),
    "special tokens": lambda: with_pad(make_llama()),
}


@pytest.mark.parametrize("name", SAME)
def test_what_scores_do_not_depend_on_does_not_count(name):
    assert Prior(SAME[name]()).fingerprint == Prior(make_llama()).fingerprint


def test_saved_loaded_and_shared(tmp_path):
    make_llama().save_pretrained(tmp_path)
    fingerprint = Prior(make_llama()).fingerprint
    assert Prior.from_pretrained(tmp_path).fingerprint == fingerprint
    assert Prior.shared(tuned()).fingerprint == fingerprint
    prior = Prior(make_llama(1))
    assert prior.fingerprint != fingerprint
    prior.swap(tmp_path)
    assert prior.fingerprint == fingerprint


def test_the_precision_of_the_pass_counts():
    prior = Prior(make_llama())
    own = prior.fingerprint
    prior.autocast_dtype = torch.bfloat16
    assert prior.fingerprint != own


def test_another_adapter_switched_on_is_seen():
    model = tuned()
    model.add_adapter("second", LoraConfig(r=4, target_modules=["q_proj"]))
    move_adapters(model, 5)
    prior = Prior(model)
    own = prior.fingerprint
    model.set_adapter("second")
    assert prior.fingerprint != own
