"""Every causal language model of the installed transformers, tiny and random: exact, or refused.

Prints a table (`pytest -m slow -s tests/prior/test_all_families.py`).
"""

import collections
import warnings

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers import logging as transformers_logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from toedit_collate import Prior, edit_tokens

V, LENGTHS, MOST_WEIGHTS = 160, (24, 9, 17), 4_000_000
_NUMBERS = {
    V: "vocab_size n_vocab vocab_size_per_layer_input",
    64: "max_position_embeddings n_positions max_seq_len n_ctx",
    48: "hidden_dim intermediate_size ffn_dim d_ff decoder_ffn_dim encoder_ffn_dim n_inner "
        "ffn_hidden_size intermediate_size_mlp dim_ff mlp_dim",
    32: "hidden_size d_model n_embd dim embed_dim emb_dim lru_width embedding_size "
        "attention_hidden_size word_embed_proj_dim projection_dim output_embedding_size",
    16: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size q_lora_rank "
        "kv_lora_rank qk_head_dim attention_window_size sliding_window",
    8: "head_dim dim_head state_size mamba_d_state mamba_n_heads mamba_d_head mamba_num_heads "
       "mamba_head_dim ssm_state_size chunk_size mamba_chunk_size qk_nope_head_dim "
       "qk_rope_head_dim v_head_dim max_relative_position linear_key_head_dim "
       "linear_value_head_dim kv_channels hidden_size_per_layer_input d_kv",
    4: "num_attention_heads num_heads n_head n_heads decoder_attention_heads "
       "encoder_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts "
       "conv_kernel time_step_rank rotary_dim linear_num_value_heads",
    2: "num_hidden_layers num_layers n_layer n_layers decoder_layers num_blocks "
       "num_decoder_layers num_key_value_heads num_kv_heads multi_query_group_num "
       "num_experts_per_tok top_k moe_k moe_topk num_experts_per_token experts_per_token "
       "linear_num_key_heads",
    1: "encoder_layers num_encoder_layers first_k_dense_replace n_group topk_group "
       "n_shared_experts mamba_n_groups n_groups",
}  # fmt: skip
SIZES = {name: number for number, names in _NUMBERS.items() for name in names.split()}
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def tiny_config(name):
    kind = CONFIG_MAPPING[name]
    base = kind()
    text = base.get_text_config(decoder=True)

    def is_number(value):
        return isinstance(value, int) and not isinstance(value, bool)

    sizes = {n: v for n, v in SIZES.items() if is_number(getattr(text, n, None))}
    tokens = {n: 1 for n in _TOKENS if is_number(getattr(text, n, None))}
    decoder = {"is_decoder": True} if hasattr(text, "is_decoder") else {}
    if text is not base:
        for field, value in {**sizes, **tokens}.items():
            setattr(text, field, value)
        return base
    for settings in ({**sizes, **tokens, **decoder}, {**sizes, **tokens}, sizes):
        try:
            return kind(**settings)
        except Exception as error:
            problem = error
    raise problem


def make_tiny(name):
    config = tiny_config(name)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_WEIGHTS:
        raise OverflowError(f"{size / 1e6:.0f} M weights")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.is_floating_point():
                parameter.normal_(std=0.15)
    return model


def largest_error(model, prior):
    """Of log P against the model's own forward pass, on each prefix of a document alone."""
    torch.manual_seed(1)
    ids = torch.randint(3, min(prior.vocab_size, V), (len(LENGTHS), max(LENGTHS)))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)).long()
    got = edit_tokens(prior, ids, attention_mask=mask, return_logprob=True).logprob
    worst = 0.0
    for row, length in enumerate(LENGTHS):
        for t in (1, 2, length // 2, length - 1):
            with torch.no_grad():
                logits = model(input_ids=ids[row : row + 1, :t], use_cache=False).logits[0, -1]
            expected = logits.double().log_softmax(-1)[ids[row, t]]
            worst = max(worst, abs(float(expected - got[row, t])))
    return worst


def verdict(name):
    """(what became of it, why)."""
    try:
        model = make_tiny(name)
    except Exception as error:  # a configuration that this file does not know how to shrink
        return "not made", f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    try:
        prior = Prior(model)
    except (ValueError, TypeError) as error:
        return "refused", str(error)
    error = largest_error(model, prior)
    return ("exact" if error < 2e-3 else "WRONG"), f"{error:.1e}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_family_is_exact_or_refused():
    transformers_logging.set_verbosity_error()
    found = {}
    for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[name] = verdict(name)
        print(f"{name:28} {found[name][0]:9} {found[name][1][:150]}", flush=True)
    counts = collections.Counter(kind for kind, _ in found.values())
    print(dict(counts))
    assert not [name for name, (kind, _) in found.items() if kind == "WRONG"]
    assert counts["exact"] > 100
    reasons = ("is not causal", "computes its logits in a way", "fails on plain rows",
               "decoder-only", "logits of shape", "vocabulary projection")  # fmt: skip
    for name, (kind, why) in found.items():
        assert kind != "refused" or any(reason in why for reason in reasons), (name, why)
