"""Tiny configurations of the model families of transformers, for `test_all_families`.

Sizes are set by the names of a configuration's fields; OVERRIDES has the rest.
"""

import dataclasses

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

V, MOST_WEIGHTS = 160, 4_000_000
_NUMBERS = {
    V: "vocab_size n_vocab n_words vocab_size_per_layer_input",
    64: "max_position_embeddings n_positions max_seq_len n_ctx max_source_positions "
        "max_target_positions max_sequence_length",
    48: "hidden_dim intermediate_size ffn_dim d_ff decoder_ffn_dim encoder_ffn_dim n_inner d_inner "
        "ffn_hidden_size intermediate_size_mlp dim_ff mlp_dim feed_forward_size",
    32: "hidden_size d_model n_embd dim embed_dim emb_dim lru_width embedding_size "
        "attention_hidden_size word_embed_proj_dim projection_dim output_embedding_size "
        "embedding_dim block_multiple_of",
    16: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size q_lora_rank "
        "kv_lora_rank attention_window_size sliding_window router_hidden_size o_lora_rank",
    8: "head_dim dim_head d_head state_size mamba_d_state mamba_n_heads mamba_d_head "
       "mamba_num_heads mamba_head_dim mamba_headdim ssm_state_size chunk_size mamba_chunk_size "
       "qk_nope_head_dim qk_rope_head_dim v_head_dim max_relative_position linear_key_head_dim "
       "linear_value_head_dim kv_channels hidden_size_per_layer_input d_kv index_head_dim "
       "attention_head_dim index_topk",
    4: "num_attention_heads num_heads n_head n_heads decoder_attention_heads "
       "encoder_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts "
       "conv_kernel time_step_rank rotary_dim linear_num_value_heads index_n_heads "
       "num_encoder_attention_heads num_decoder_attention_heads",
    2: "num_hidden_layers num_layers n_layer n_layers decoder_layers num_blocks "
       "num_decoder_layers num_key_value_heads num_kv_heads multi_query_group_num "
       "num_experts_per_tok top_k moe_k moe_topk num_experts_per_token experts_per_token "
       "linear_num_key_heads zero_expert_num ngram",
    1: "encoder_layers num_encoder_layers first_k_dense_replace n_group topk_group "
       "n_shared_experts mamba_n_groups n_groups num_dense_layers mamba_ngroups",
}  # fmt: skip
SIZES = {name: number for number, names in _NUMBERS.items() for name in names.split()}
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
# Fields that may be empty, and then are made of others.
_MAY_BE_EMPTY = ("head_dim", "num_key_value_heads", "num_experts_per_tok")

_GEMMA4 = {"global_head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}
_GEMMA4_DRAFT = {
    "model_type": "gemma4_text", "vocab_size": V, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 2,
    **_GEMMA4,
}  # fmt: skip
# By the name of the family, or of a part of its configuration.
OVERRIDES = {
    "blt": {"encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [2]},
    "blt.encoder_config": {"hidden_size_global": 32},
    "blt.decoder_config": {"hidden_size_global": 32},
    "cohere_compass_text": {"rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "dbrx.attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
    "dbrx.ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"],
                     "num_kv_shared_layers": 0, "laurel_rank": 4},
    "gemma4_text": _GEMMA4,
    "gemma4.text_config": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "gemma4_unified.text_config": _GEMMA4,
    "gemma4_assistant": {"text_config": _GEMMA4_DRAFT, "backbone_hidden_size": 32},
    "gemma4_unified_assistant": {"text_config": _GEMMA4_DRAFT, "backbone_hidden_size": 32},
    # The indexer sums rectified scores of its heads; of few, many sums are 0, and which of equal
    # ones are the largest depends on the width of the row.
    "glm_moe_dsa": {"index_n_heads": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 16},
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "num_buckets": 2,
                 "attn_layers": ["local", "lsh"], "local_attn_chunk_length": 4,
                 "lsh_attn_chunk_length": 4},
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20,
                 "pronunciation_embed_dim": 8, "shape_embed_dim": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
              "use_mamba_kernels": False, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "use_mamba_kernels": False},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def make_tiny(name):
    """A model of a family with random weights, which all matter; in eval mode.

    Raises:
        Exception: whatever transformers raises; or an OverflowError where it would be large.
    """
    config = _tiny(CONFIG_MAPPING[name], name)
    kind = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name])
    if "decoder" in config.sub_configs:  # MusicGen
        config = config.decoder

    def make():
        if kind.config_class is type(config):
            return kind(config)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)

    with torch.device("meta"):
        size = sum(p.numel() for p in make().parameters())
    if size > MOST_WEIGHTS:
        raise OverflowError(f"{size / 1e6:.0f} M weights")
    model = make().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.is_floating_point():
                parameter.normal_(std=0.15)
    return model


def _tiny(kind, name, default=None):
    settings = OVERRIDES.get(name, {})
    default = default if default is not None else _default(kind, settings)
    fields = _sizes(kind, default.to_dict())
    for part in kind.sub_configs.keys() - settings.keys():
        sub = getattr(default, part, None)
        if sub is not None:
            fields[part] = _tiny(type(sub), f"{name}.{part}", sub)
    return kind(**{**fields, **settings})


def _default(kind, settings):
    try:
        return kind()
    except Exception:  # whose own defaults are refused
        return kind(**settings)


def _is_number(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _sizes(kind, default):
    """The settings of a kind of configuration by the names of its fields."""
    known = dataclasses.is_dataclass(kind)  # of older versions of transformers they are not
    names = {field.name for field in dataclasses.fields(kind)} if known else set(default)
    found = {}
    for name, size in SIZES.items():
        if name not in names:
            continue
        value = default.get(name)
        if _is_number(value) or (value is None and name in _MAY_BE_EMPTY):
            found[name] = size
    if "kv_lora_rank" in names:  # compressed keys have as many heads as queries
        found["num_key_value_heads"] = 4
    found |= {n: 1 for n in _TOKENS if n in names and _is_number(default.get(n))}
    if "is_decoder" in names:
        found["is_decoder"] = True
    return found
