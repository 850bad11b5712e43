"""`toedit plan`: what it counts on the meta device is what a real step takes."""

from __future__ import annotations

import json
import pathlib
import re

import pytest
import torch
import trl.trainer.utils
from planned_step import RealStep, optimizer_of, state_bytes, weight_bytes
from tiny_families import make_tiny
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, OlmoConfig

from toedit_collate import EditPolicy
from toedit_collate.commands import counting
from toedit_collate.commands.bench import peak_bytes
from toedit_collate.commands.main import main
from toedit_collate.commands.plan import (
    CARDS,
    Sharding,
    _empty_model,
    _optimizer_states,
    find_config,
    head_passes,
    make_plan,
    read_run,
    read_sharding,
)
from toedit_collate.data.demo_model import make_config
from toedit_collate.errors import UnusableError

CONFIGS = pathlib.Path(__file__).parents[2] / "recipes" / "configs"
CPU, H100 = CARDS["cpu"], CARDS["h100"]
LORA = "use_peft: true\nlora_r: 8\nlora_target_modules: [all-linear]\nlora_dropout: 0.0\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders with configs of small models; no weights."""
    folder = tmp_path_factory.mktemp("models")
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    size = {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 448,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    LlamaConfig(**size, num_key_value_heads=2, tie_word_embeddings=False, **ids).save_pretrained(
        folder / "llama"
    )
    OlmoConfig(**size, tie_word_embeddings=True, **ids).save_pretrained(folder / "olmo")
    # With dropout in attention, a CPU has no fused kernel.
    GPT2Config(
        vocab_size=512, n_embd=128, n_layer=3, n_head=4, n_positions=256, attn_pdrop=0.0, **ids
    ).save_pretrained(folder / "gpt2")
    return folder


@pytest.fixture
def write(tmp_path, models):
    def write(text: str = "", model: str = "llama", **fields) -> pathlib.Path:
        path = tmp_path / "config.yaml"
        lines = {
            "model_name_or_path": models / model,
            "per_device_train_batch_size": 2,
            "max_length": 64,
            "packing": True,
            "packing_strategy": "wrapped",
            "edit_policy": "none",
            **fields,
        }
        path.write_text(text + "".join(f"{key}: {value}\n" for key, value in lines.items()))
        return path

    return write


def planned(path, card=CPU, sharding=Sharding()):  # noqa: B008 - frozen
    return make_plan(read_run(path), card, sharding, 0.4)


# Counts


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("allenai/OLMo-1B-hf", 1_176_764_416),
        ("meta-llama/Meta-Llama-3-70B", 70_553_706_496),
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("openai-community/gpt2", 124_439_808),
    ],
)
def test_known_models_have_their_published_size(name, total):
    config, dtype = find_config(name, {})
    assert sum(p.numel() for p in _empty_model(config, dtype).parameters()) == total


def test_the_demo_model_is_known():
    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = 0, 1, 2

        def __len__(self):
            return 1024

    made = sum(p.numel() for p in _empty_model(make_config(Tokenizer()), "float32").parameters())
    config, dtype = find_config("toedit-demo", {})
    assert sum(p.numel() for p in _empty_model(config, dtype).parameters()) == made


def test_config_overrides_change_the_model():
    assert find_config("openai-community/gpt2", {"num_hidden_layers": 2})[0].n_layer == 2


def test_the_dtype_is_that_of_the_published_weights(models):
    assert find_config("meta-llama/Meta-Llama-3-8B", {})[1] == "bfloat16"
    config = AutoConfig.from_pretrained(models / "llama")
    config.dtype = torch.float16
    config.save_pretrained(models / "half")
    assert find_config(str(models / "half"), {})[1] == "float16"


@pytest.mark.parametrize("name", ["adamw_torch_fused", "sgd", "rmsprop"])
def test_optimizer_states_are_those_it_allocates(models, name):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(models / "llama"))
    weights = list(model.parameters())
    optimizer = optimizer_of(name, model, weights)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    counted = _optimizer_states(name) * sum(weight.nbytes for weight in weights)
    assert counted == pytest.approx(state_bytes(optimizer), rel=0.01)  # and a number per tensor


# Memory of a step, next to a real one


SEVERAL = "gradient_accumulation_steps: 2\n"  # gradients are there in the second forward pass
STEPS = [
    ("llama", "bfloat16", True, True, SEVERAL),
    ("llama", "float32", True, False, SEVERAL),
    ("llama", "bfloat16", True, True, LORA),
    ("llama", "float32", False, False, LORA),
    ("olmo", "bfloat16", True, True, LORA),
    ("gpt2", "float32", False, True, SEVERAL),
]


@pytest.mark.parametrize(("family", "dtype", "bf16", "checkpointing", "more"), STEPS)
def test_the_peak_is_that_of_a_real_step(
    write, monkeypatch, family, dtype, bf16, checkpointing, more
):
    # Small tiles of the loss: else they are most of the peak of a model as small as this.
    monkeypatch.setattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 64)
    monkeypatch.setattr(counting, "_LOSS_TILE_IDS", 64)
    path = write(more, family, dtype=dtype, bf16=bf16, gradient_checkpointing=checkpointing)
    plan, step = planned(path), RealStep(read_run(path))
    peak = step.peak()
    assert plan.bytes["weights"] == weight_bytes(step.trainee)
    assert plan.bytes["optimizer"] == pytest.approx(state_bytes(step.optimizer), rel=1e-3)
    assert plan.bytes["gradients"] == sum(p.numel() * p.element_size() for p in step.trained)
    assert plan.peak == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("family", ["llama", "olmo", "gpt2"])
def test_the_edit_pass_takes_what_it_takes(write, models, family):
    path = write("", family, edit_policy="paper", prior=models / family)
    step = RealStep(read_run(path))
    step.edit()  # what is kept from the first edit on is no peak
    measured = peak_bytes(step.edit, torch.device("cpu"))
    assert planned(path).bytes["edit pass"] == pytest.approx(measured, rel=0.3)


def test_a_mask_is_counted(models):
    """A packed row needs one between documents, of all pairs of tokens, in each of 3 layers."""
    model = _empty_model(AutoConfig.from_pretrained(models / "llama"), "bfloat16")
    without = counting.count_training(model, 2, 64)
    with_mask = counting.count_training(model, 1, 128, with_mask=True)
    assert with_mask.peak - without.peak >= 3 * 2 * 128 * 128


@pytest.mark.parametrize("family", ["gemma2", "mamba2", "qwen3", "phi3", "gpt_neox"])
def test_any_family_can_be_counted(family):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(make_tiny(family).config, dtype=torch.float32)
    counted = counting.count_training(model, 2, 32, checkpointing=family != "mamba2")
    assert counted.flops > 6 * 2 * 32 * model.get_output_embeddings().weight.numel()
    assert counted.peak > 4 * model.get_output_embeddings().weight.numel()  # its gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_experts_of_a_token_are_counted(dtype):
    config, flops = make_tiny("mixtral").config, []
    for config.num_experts_per_tok in (1, 2):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        flops.append(counting.count_forward(model, 2, 32).flops)
    experts = [m for m in model.modules() if type(m).__name__ == "MixtralExperts"]
    weights = sum(p.numel() for m in experts for p in m.parameters()) / config.num_local_experts
    assert flops[1] - flops[0] == 2 * 2 * 32 * weights
    assert counting.count_training(model, 2, 32).flops > 3 * flops[1]


# The policy, the prior, sharding, time


def test_the_policy_decides_the_work_with_the_head(write, models):
    seconds = {}
    for policy in ("edit_threshold: 0.999\n", "", "edit_threshold: 0.5\n", "edit_region: all\n"):
        plan = planned(write(policy, edit_policy="paper", prior=models / "llama"))
        seconds[policy] = plan.seconds["edit pass"]
    assert list(seconds.values()) == sorted(set(seconds.values()))
    assert head_passes(EditPolicy(region="all", target="labels")) == 1
    assert head_passes(EditPolicy(threshold=0.99)) == 0.19
    assert head_passes(EditPolicy(threshold=0.1, region="below")) > 1


def test_a_shared_prior_has_no_weights_of_its_own(write, models):
    shared = planned(write(LORA, edit_policy="paper"))
    separate = planned(write(LORA, edit_policy="paper", prior=models / "llama"))
    without = planned(write(LORA))
    quantized = planned(
        write(LORA, edit_policy="paper", prior=models / "llama", prior_quantization="8bit")
    )
    assert shared.bytes["prior"] == 0
    assert separate.bytes["prior"] == 4 * (separate.parameters - separate.trained)
    assert separate.bytes["prior"] / 4 < quantized.bytes["prior"] < separate.bytes["prior"] / 2
    assert without.bytes["edit pass"] == without.seconds["edit pass"] == 0
    assert shared.seconds["edit pass"] == separate.seconds["edit pass"] > 0


@pytest.mark.parametrize(
    ("file", "weights", "gradients", "optimizer"),
    [("ddp", 1, 2, 1), ("fsdp2", 1 / 4, 1 / 4, 1 / 4), ("deepspeed_zero3", 1 / 4, 1 / 4, 1 / 4)],
)
def test_sharding_divides(write, file, weights, gradients, optimizer):
    """DDP has buckets for the gradients, too."""
    path = write("", bf16=True)
    alone = planned(path, H100)
    sharding = read_sharding(CONFIGS / "accelerate" / f"{file}.yaml", 4)
    spread = planned(path, H100, sharding)
    for name, share in [("weights", weights), ("gradients", gradients), ("optimizer", optimizer)]:
        assert spread.bytes[name] / alone.bytes[name] == pytest.approx(share, rel=0.01), name
    assert (spread.bytes["gathered"] > 0) == (file != "ddp")
    assert spread.tokens == 4 * alone.tokens


def test_time_follows_operations(write):
    def seconds(text="", **fields):
        return planned(write(text, gradient_checkpointing=False, **fields), H100).seconds[
            "training"
        ]

    plain = seconds()
    checkpointed = planned(write(gradient_checkpointing=True), H100).seconds["training"]
    assert 1.2 < checkpointed / plain < 4 / 3
    assert 0.6 < seconds(LORA) / plain < 0.8  # no gradients of the frozen weights
    assert seconds(gradient_accumulation_steps=3) == pytest.approx(3 * plain)


def test_operations_of_a_forward_pass(models):
    """By hand: two for each weight of a matrix, and four D for each pair of tokens in a layer."""
    config = AutoConfig.from_pretrained(models / "llama")
    model = _empty_model(config, "bfloat16")
    matrices = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    counted = counting.count_forward(model, 2, 64)
    assert counted.flops == 2 * 64 * 2 * matrices + 3 * 2 * 64 * 64 * 4 * 128


# The command


def test_fields_on_the_command_line_go_first(write, tmp_path):
    out = tmp_path / "plan.json"
    command = ["plan", "--config", str(write()), "--gpu", "l4", "--json", str(out)]
    assert main([*command, "--max_length", "32", "--use_peft", "--lora_r", "4"]) == 0
    found = json.loads(out.read_text())
    assert found["tokens"] == 2 * 32
    assert 0 < found["trained"] < found["parameters"] / 10


def test_table_and_json_agree(write, tmp_path, capsys):
    path, out = write(LORA, edit_policy="paper", max_steps=3), tmp_path / "plan.json"
    assert main(["plan", "--config", str(path), "--gpu", "l4", "--json", str(out)]) == 0
    found, table = json.loads(out.read_text()), capsys.readouterr().out
    assert f"{found['peak'] / 2**20:,.2f}" in table
    assert "fits:" in table
    assert "the run" in table
    assert set(found["bytes"]) >= {"weights", "gradients", "optimizer", "activations", "edit pass"}


def test_a_card_that_is_too_small(write, capsys):
    path = write(model_name_or_path="openai-community/gpt2-xl", edit_policy="paper",
                 prior="openai-community/gpt2-xl", config_overrides="{num_hidden_layers: 2}",
                 max_length=1024, per_device_train_batch_size=512)  # fmt: skip
    assert main(["plan", "--config", str(path), "--gpu", "rtx3090"]) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, [], r"--config .*nothing\.yaml: can't be read"),
        (b"# caf\xe9\n", [], "is not YAML"),
        ("- a\n- b\n", [], r"must be a mapping .*got list"),
        ("a: [", [], "is not YAML"),
        ("max_length: 8\nprior: x\n", [], "names no model; set model_name_or_path"),
        ("model_name_or_path: no/such\nprior: x\n", [], "model no/such: its config cannot be read"),
        ("model_name_or_path: toedit-demo\n", [], "prior is 'shared'.*use_peft: true"),
        ("model_name_or_path: x\nprior: x\n", ["--max_length", "0"], "max_length must be .* got 0"),
        ("model_name_or_path: x\nprior: x\n", ["--learning_rte", "1"], "mean learning_rate"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(tmp_path, capsys, text, options, message):
    path = tmp_path / "nothing.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["plan", "--config", str(path), "--gpu", "cpu", *options]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_an_accelerate_config_that_cannot_be_used(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("distributed_type: MEGATRON_LM\n")
    with pytest.raises(UnusableError, match="does not support distributed_type MEGATRON_LM; use"):
        read_sharding(path, None)
    path.write_text("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2}\n")
    with pytest.raises(UnusableError, match="DEEPSPEED with zero_stage 2; use NO, "):
        read_sharding(path, None)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_can_be_read(path):
    assert read_run(path).rows_and_tokens
