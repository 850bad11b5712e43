"""Every family of models computes its logits in its own way; each against the slow reference."""

import pytest
import reference
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from toedit_collate import EditPolicy, Prior, edit_tokens

V = 160
_COMMON = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_NO_SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

FAMILIES = {
    "llama": _COMMON,
    "llama, tied": {"model_type": "llama", **_COMMON, "tie_word_embeddings": True},
    "gpt2": {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "qwen2": {**_COMMON, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {**_COMMON, "head_dim": 8},
    "olmo": _COMMON,
    "olmo2": _COMMON,
    "gemma2": {**_COMMON, "head_dim": 8, "final_logit_softcapping": 4.0, "sliding_window": 4},
    "mistral": {**_COMMON, "sliding_window": 4},
    "phi": _COMMON,  # a head with a bias
    "gptj": {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
             "rotary_dim": 4},
    "cohere": {**_COMMON, "logit_scale": 0.25},
    "granite": {**_COMMON, "logits_scaling": 3.0},
    "mixtral": {**_COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**_COMMON, "num_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "bloom": {"vocab_size": V, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": {**_COMMON, "rotary_pct": 0.5},
    "opt": {"vocab_size": V, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 16},
}  # fmt: skip


def make_model(name, seed=0):
    torch.manual_seed(seed)
    settings = {"model_type": name, **FAMILIES[name]}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings, **_NO_SPECIAL)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
        head = model.get_output_embeddings()
        head.weight.mul_(6)
        if head.bias is not None:
            head.bias.normal_()
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_family_matches_the_reference(name):
    model = make_model(name)
    prior = Prior(model)
    torch.manual_seed(1)
    ids = torch.randint(0, V, (3, 24))
    arguments = {
        "attention_mask": (torch.arange(24) < torch.tensor([[24], [9], [17]])).long().flip(1)
    }
    expected = reference.logprob(model, ids, **arguments)
    got = edit_tokens(prior, ids, return_logprob=True, **arguments).logprob
    assert torch.allclose(got.double(), expected, atol=2e-4, equal_nan=True)

    positions = torch.cat([torch.arange(10), torch.arange(14)]).expand(3, 24)
    for layout in (arguments, {"position_ids": positions}):
        for policy in policies_for(reference.logprob(model, ids, **layout).exp()):
            result = edit_tokens(prior, ids, policy=policy, **layout)
            new_ids, selected, changed, _ = reference.edit(
                model, ids, policy, forbidden=prior.special_ids, **layout
            )
            assert torch.equal(result.selected, selected)
            assert torch.equal(result.input_ids, new_ids)
            assert changed.any()


def policies_for(probability):
    """Policies that select some of the tokens, with thresholds well between two of their P."""
    ordered = probability[~probability.isnan()].sort().values
    low, high = (
        float((ordered[n] * ordered[n + 1]).sqrt())
        for n in (len(ordered) // 3, 2 * len(ordered) // 3)
    )
    yield EditPolicy(threshold=high, temperature=1.3)
    yield EditPolicy(region="below", threshold=low, sampler="top_p", top_p=0.8)


def test_an_unknown_way_to_logits_is_refused():
    model = make_model("llama")
    forward = model.forward

    def shifted(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits + torch.arange(V)
        return output

    model.forward = shifted
    with pytest.raises(ValueError, match="LlamaForCausalLM computes its logits in a way"):
        Prior(model)


def test_what_is_no_causal_language_model_is_refused():
    with pytest.raises(TypeError, match=r"causal language model.*LlamaModel.*AutoModelForCausalLM"):
        Prior(make_model("llama").model)
    with pytest.raises(TypeError, match=r"causal language model.*Linear"):
        Prior(torch.nn.Linear(2, 2))
    t5 = AutoConfig.for_model(
        "t5", vocab_size=V, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    from transformers import T5ForConditionalGeneration

    with pytest.raises(TypeError, match="T5ForConditionalGeneration"):
        Prior(T5ForConditionalGeneration(t5))
