"""`toedit plan`: counts are exact, and the formulas are compared with what PyTorch does."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re

import pytest
import torch
import trl.trainer.utils
from conftest import make_llama
from plan_trial import Trial, on_one, optimizer_of, saved_bytes, state_bytes, weight_bytes
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, OlmoConfig

from toedit_collate.commands.main import main
from toedit_collate.commands.measuring.memory import peak_bytes
from toedit_collate.commands.plan import head
from toedit_collate.commands.plan.cards import CARDS, find_card
from toedit_collate.commands.plan.config import Lora, make_config, read_values
from toedit_collate.commands.plan.estimate import _size, estimate
from toedit_collate.commands.plan.header import header_of, read_place, write_header
from toedit_collate.commands.plan.layers import layers_of
from toedit_collate.commands.plan.models import find_config
from toedit_collate.commands.plan.optimizers import optimizer_bytes
from toedit_collate.commands.plan.parameters import count_parameters
from toedit_collate.commands.plan.sharding import read_sharding
from toedit_collate.commands.plan.table import header_lines
from toedit_collate.commands.plan.times import forward_flops
from toedit_collate.data.demo_model import _make_model
from toedit_collate.errors import UnusableError

RECIPES = pathlib.Path(__file__).parents[2] / "recipes" / "configs"
CONFIGS = sorted(RECIPES.glob("*.yaml"))
TOLERANCE = 0.15
CPU = CARDS["cpu"]
LORA = "use_peft: true\nlora_r: 8\nlora_target_modules: [all-linear]\n"


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
    # With dropout in attention a CPU has no fused kernel, and keeps probabilities that a GPU lacks.
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
            "edit_policy": "none",
            **fields,
        }
        path.write_text(text + "".join(f"{key}: {value}\n" for key, value in lines.items()))
        return path

    return write


# Counts


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("meta-llama/Meta-Llama-3-8B", 8_030_261_248),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("allenai/OLMo-1B-hf", 1_176_764_416),
        ("openai-community/gpt2", 124_439_808),
    ],
)
def test_counts_are_those_of_the_published_models(name, total):
    counts = count_parameters(find_config(name, {}, field="model_name_or_path"))
    assert counts.total == counts.trainable == total


def test_the_demo_model_is_known():
    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = 0, 1, 2

        def __len__(self):
            return 1024

    made = sum(p.numel() for p in _make_model(Tokenizer()).parameters())
    assert count_parameters(find_config("toedit-demo", {}, field="x")).total == made


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("targets", ["all-linear", None])
def test_adapters_are_peft_s(models, family, targets):
    from peft import LoraConfig, get_peft_model

    config = AutoConfig.from_pretrained(models / family)
    real = get_peft_model(
        AutoModelForCausalLM.from_config(config),
        LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"),
    )
    trainable, total = real.get_nb_trainable_parameters()
    counts = count_parameters(config, Lora(4, targets, (), 0.0))
    assert (counts.trainable, counts.total) == (trainable, total)
    assert counts.targets


def test_config_overrides_change_the_model():
    config = find_config("openai-community/gpt2", {"num_hidden_layers": 2}, field="config_name")
    assert layers_of(config).L == 2


@pytest.mark.parametrize("name", ["adamw_torch_fused", "sgd", "adafactor"])
def test_optimizer_bytes_are_those_it_allocates(models, name):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(models / "llama"))
    weights = list(model.parameters())
    optimizer = optimizer_of(name, model, weights)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    states = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    allocated = sum(value.numel() * value.element_size() for value in states)
    if name == "adafactor":
        # Its last figure, the RMS of each tensor, is one number apiece.
        allocated -= sum(4 for value in states if value.ndim == 0)
    assert optimizer_bytes(name, [tuple(w.shape) for w in weights], 4) == allocated


def test_eight_bit_states_are_a_quarter():
    shapes = [(1024, 1024)]
    small = optimizer_bytes("paged_adamw_8bit", shapes, 4) / optimizer_bytes("adamw", shapes, 4)
    assert 0.25 < small < 0.26


# Memory of a step


STEPS = [
    ("llama", "bfloat16", True, True, ""),
    ("llama", "float32", True, False, ""),
    ("llama", "bfloat16", True, True, LORA + "lora_dropout: 0.0\n"),
    ("llama", "float32", False, False, LORA + "lora_dropout: 0.1\n"),
    ("olmo", "bfloat16", True, True, LORA + "lora_dropout: 0.0\n"),
    ("gpt2", "float32", True, False, ""),
    ("gpt2", "float32", False, True, ""),
]


needs_its_loss = pytest.mark.skipif(
    not hasattr(trl.trainer.utils, "add_fused_lm_head"),
    reason=f"the estimate is of the loss of TRL 1.16, which is not in {trl.__version__}",
)


@needs_its_loss
@pytest.mark.parametrize(("family", "dtype", "bf16", "checkpointing", "more"), STEPS)
def test_activations_and_peak_are_what_pytorch_has(
    write, monkeypatch, family, dtype, bf16, checkpointing, more
):
    # Small tiles of the loss: else they are most of the peak of a model as small as this.
    monkeypatch.setattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 64)
    monkeypatch.setattr(head, "_TILE_IDS", 64)
    path = write(
        more, family, dtype=dtype, bf16=bf16, gradient_checkpointing=checkpointing, packing=False
    )
    plan = on_one(estimate(path, CPU))
    trial = Trial(plan)
    peak = trial.peak(edited=False)  # and there are optimizer states
    parts = plan.memory.parts
    assert parts["weights"] == weight_bytes(trial.trainee)
    assert parts["gradients"] == trial.gradient_bytes()
    assert parts["optimizer"] == state_bytes(trial.optimizer)
    assert plan.memory.saved == pytest.approx(trial.saved(), rel=TOLERANCE)
    assert plan.memory.peak == pytest.approx(peak, rel=TOLERANCE)


@pytest.mark.parametrize("layout", ["padded", "one row"])
def test_a_mask_is_counted(write, layout):
    """It is kept in each layer, and keys and values are repeated for it."""
    from toedit_collate.commands.plan.activations import final_bytes, layer_bytes

    more = "" if layout == "padded" else "packing: true\n"
    plan = estimate(write(more, dtype="float32", bf16=False), CPU)
    B, T, L = plan.run.B, plan.run.T, plan.layers.L
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(plan.run.model)).train()
    ids = torch.randint(0, 512, (B, T))
    batch = {"input_ids": ids, "attention_mask": (torch.arange(T) < T - 5).long().expand(B, T)}
    if layout == "one row":
        positions = torch.arange(T).repeat(B)
        batch = {"input_ids": ids.view(1, -1), "position_ids": positions.view(1, -1)}
    counted = saved_bytes(model, lambda: model.model(**batch, use_cache=False))
    layer = sum(layer_bytes(plan.layers, plan.setting).values())
    predicted = B * T * (L * layer + final_bytes(plan.layers, plan.setting))
    assert plan.setting.mask_length == (T if layout == "padded" else B * T)
    assert predicted == pytest.approx(counted, rel=0.015)  # the mask is 2 % and more


@needs_its_loss
@pytest.mark.parametrize("family", ["llama", "olmo", "gpt2"])
def test_the_edit_pass_takes_what_it_takes(write, models, family):
    path = write("", family, edit_policy="paper", prior=models / family)
    plan = estimate(path, CPU)
    trial = Trial(plan)
    trial.edit()  # what is kept from the first edit on is no peak
    predicted = plan.memory.parts["edit pass"]
    assert predicted == pytest.approx(peak_bytes(trial.edit, torch.device("cpu")), rel=0.3)


@needs_its_loss
def test_the_peak_with_a_shared_prior(write):
    path = write(LORA + "prior: shared\n", edit_policy="paper", bf16=False, max_length=16)
    plan = on_one(estimate(path, CPU))
    for edited in (False, True):  # here, both are that of the loss
        peak = Trial(plan).peak(edited=edited)
        assert plan.memory.peak == pytest.approx(peak, rel=TOLERANCE)


# The prior, sharding, time


def test_a_shared_prior_has_no_weights_of_its_own(write, models):
    shared = estimate(write(LORA, edit_policy="paper"), CPU)
    separate = estimate(write(LORA, edit_policy="paper", prior=models / "llama"), CPU)
    without = estimate(write(LORA), CPU)
    assert shared.memory.parts["prior"] == 0
    assert separate.memory.parts["prior"] == 4 * (separate.counts.total - separate.counts.trainable)
    assert without.memory.parts["edit pass"] == without.times.edit == 0
    assert shared.times.edit == pytest.approx(separate.times.edit)
    assert shared.times.edit > 0


def test_the_edit_pass_counts_only_if_it_is_the_largest(write):
    plan = estimate(write(LORA, edit_policy="paper"), CPU)
    assert plan.memory.peak == max(plan.memory.moments.values())
    assert plan.memory.moments["edit pass"] < plan.memory.peak
    assert plan.memory.peak_moment != "edit pass"


@pytest.mark.parametrize(
    ("file", "weights", "gradients", "optimizer"),
    [("ddp", 1, 2, 1), ("fsdp2", 1 / 4, 1 / 4, 1 / 4), ("deepspeed_zero3", 1 / 8, 1 / 8, 3 / 8)],
)
def test_sharding_divides(write, file, weights, gradients, optimizer):
    """FSDP keeps float32; ZeRO-3 16 bits, and a third copy with the optimizer; DDP has buckets."""
    path = write("", bf16=True)
    alone = estimate(path, CARDS["h100"])
    spread = estimate(
        path, CARDS["h100"], gpus=4, accelerate=RECIPES / "accelerate" / f"{file}.yaml"
    )
    for name, share in [("weights", weights), ("gradients", gradients), ("optimizer", optimizer)]:
        ratio = spread.memory.parts[name] / alone.memory.parts[name]
        assert ratio == pytest.approx(share, rel=0.01), name
    assert spread.times.tokens_per_step == 4 * alone.times.tokens_per_step


def test_four_bits_take_an_eighth_of_float32():
    path = RECIPES / "sft_lora_llama3_8b_4bit.yaml"
    plan = estimate(path, CARDS["rtx4090"])
    layers = plan.memory.parts["weights"] - 2 * (plan.counts.total - plan.counts.linear)
    assert layers / plan.counts.linear == pytest.approx(0.516, abs=0.001)


def test_time_follows_operations(write):
    plan = estimate(write("", gradient_checkpointing=False), CARDS["a100-80gb"], mfu=0.5)
    counts, layers = plan.counts, plan.layers
    each = 3 * forward_flops(layers, counts.linear, 64) + 4 * 2 * counts.head
    assert plan.times.train == pytest.approx(128 * each / (312e12 * 0.5))
    again = estimate(write("", gradient_checkpointing=True), CARDS["a100-80gb"], mfu=0.5)
    assert 1.2 < again.times.train / plan.times.train < 4 / 3
    lora = estimate(write(LORA, gradient_checkpointing=False), CARDS["a100-80gb"], mfu=0.5)
    assert 0.6 < lora.times.train / plan.times.train < 0.8  # no gradients of the frozen weights


def test_steps_of_a_run(write):
    plan = estimate(write("", dataset_limit=10, num_train_epochs=3, generations=2), CPU)
    assert plan.times.num_steps == 15
    assert plan.times.total == pytest.approx(2 * 15 * plan.times.step)
    assert estimate(write("", max_steps=7), CPU).times.num_steps == 7
    assert estimate(write(), CPU).times.total is None


# The command


def test_fields_on_the_command_line_go_first(write, capsys):
    path = write()
    command = ["plan", "--config", str(path), "--gpu", "l4", "--json", "-"]
    assert main([*command, "--max_length", "32", "--lora_target_modules", "q_proj", "v_proj",
                 "--use_peft", "--gradient-checkpointing=false"]) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["T"] == 32
    assert found["config"]["lora"]["targets"] == ["q_proj", "v_proj"]
    assert found["config"]["checkpointing"] is False
    assert found["card"]["name"] == "l4"


def test_table_and_json_agree(write, tmp_path, capsys):
    path, out = write(LORA, edit_policy="paper", max_steps=3), tmp_path / "plan.json"
    assert main(["plan", "--config", str(path), "--gpu", "l4", "--json", str(out)]) == 0
    found, table = json.loads(out.read_text()), capsys.readouterr().out
    assert f"{found['peak_bytes'] / 2**20:,.1f}" in table
    assert found["fits"] is True
    assert "fits:" in table
    assert found["seconds"]["run"] == pytest.approx(3 * found["seconds"]["step"])
    assert set(found["bytes"]) >= {"weights", "gradients", "optimizer", "activations", "edit pass"}


def test_too_small_a_card_is_said(capsys):
    path = RECIPES / "sft_lora_llama3_8b.yaml"
    assert main(["plan", "--config", str(path), "--gpu", "rtx3090", "--gpus", "1"]) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, [], r"--config .*nothing\.yaml: can't be read"),
        (b"# caf\xe9\n", [], "is no text in UTF-8"),
        ("- a\n- b\n", [], r"must be a mapping .*got list"),
        ("a: [", [], "is not YAML"),
        ("max_length: 8\n", [], "names no model; set model_name_or_path"),
        ("model_name_or_path: no/such\nprior: x\n", [], "model_name_or_path no/such: it is not"),
        ("model_name_or_path: toedit-demo\n", [], "prior is 'shared'.*use_peft: true"),
        ("edit_policy: none\n", ["--gpu", "b42"], "--gpu b42: not known; write one of h200, h100"),
        ("# plan for: eight\nmodel_name_or_path: toedit-demo\n", [], "'# plan for: eight' can't"),
        ("model_name_or_path: x\nprior: x\n", ["--max_length", "0"], "max_length must be .* got 0"),
        ("model_name_or_path: x\nprior: x\n", ["--bf16", "maybe"], "bf16 must be true or false"),
        ("model_name_or_path: x\n", ["--edit_policy", "y"], "edit_policy must be one of paper"),
        ("model_name_or_path: x\n", ["y"], "y: not an option"),
    ],
)  # fmt: skip
def test_what_can_t_be_used_is_said(tmp_path, capsys, text, options, message):
    path = tmp_path / "nothing.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["plan", "--config", str(path), "--gpu", "cpu", *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error


def test_an_accelerate_config_that_can_t_be_used(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("distributed_type: MEGATRON_LM\n")
    with pytest.raises(UnusableError, match="distributed_type MEGATRON_LM is not planned"):
        read_sharding(path, None, fsdp=False)


def test_options_import_nothing_heavy():
    """`toedit --help` imports them."""
    source = (
        RECIPES.parent.parent / "toedit_collate" / "commands" / "plan" / "options.py"
    ).read_text()
    imported = [line for line in source.splitlines() if re.match(r"(from|import) ", line)]
    assert not [line for line in imported if "torch" in line or "from . " in line]


# Headers


def planned(path):
    place = read_place(path)
    return estimate(path, find_card(place.card), gpus=place.gpus, accelerate=place.accelerate)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_headers_are_what_the_command_prints(path):
    assert header_of(path) == header_lines(planned(path)), (
        f"run toedit plan --config {path.relative_to(RECIPES.parent.parent)} --write-header"
    )


def test_a_recipe_fits_its_card():
    assert len(CONFIGS) > 15
    for path in CONFIGS:
        assert planned(path).fits is not False, path


def test_a_header_is_written_once(write, capsys):
    path = write("# A title.\n# plan: (see toedit plan)\n# More.\n\n", max_steps=3)
    command = ["plan", "--config", str(path), "--write-header"]
    assert main([*command, "--gpu", "l4", "--gpus", "2"]) == 0
    first = path.read_text()
    lines = first.splitlines()
    assert lines[:2] == ["# A title.", "# plan for: 2 x l4"]
    assert "(see toedit plan)" not in first
    assert lines[lines.index("# More.") - 1].startswith("# plan: ")
    assert main(command) == 0  # it knows the card
    assert path.read_text() == first
    capsys.readouterr()
    assert main(["plan", "--config", str(path), "--header"]) == 0
    assert capsys.readouterr().out.splitlines() == header_of(path)
    assert make_config(read_values(path)).max_steps == 3


def test_a_config_without_the_line_gets_one(write):
    path = write("# A title.\n\n")
    write_header(path, ["# plan: x"])
    assert path.read_text().splitlines()[:3] == ["# A title.", "", "# plan: x"]
    assert dataclasses.astuple(read_place(path)) == ("h100", None, None)


class TestCorpus:
    def test_the_figures(self, capsys):
        """By hand: 8.03 B weights, two operations each, at 40 % of 989 TFLOP/s."""
        assert main(["plan", "--corpus", "1T", "--gpus", "256", "--json", "-"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["tokens"] == 10**12
        assert plan["tokens_per_second"] == pytest.approx(0.4 * 989e12 / (2 * 7.0e9), rel=0.1)
        assert plan["hours"] == pytest.approx(plan["gpu_hours"] / 256)
        seconds = plan["gpu_hours"] * 3600
        assert seconds * plan["tokens_per_second"] == pytest.approx(10**12)
        assert plan["tasks"] == math.ceil(plan["gpu_hours"] * 2)
        loaded = 2 * 8.03e9 * 256  # by all GPUs, each half hour
        assert plan["load_bytes_per_second"] == pytest.approx(loaded / 1800, rel=0.01)
        assert plan["interruptions"] == pytest.approx(plan["gpu_hours"] / 50_700, rel=0.01)
        assert plan["lost_gpu_hours"] == pytest.approx(plan["interruptions"] / 4)
        assert plan["cache_memory_bytes"] == 36 * 10**9
        assert plan["cache_open_hours"] == pytest.approx([2e12 / 3.6e12, 6e12 / 3.6e12])
        for num, size in zip(plan["cache_files"], plan["cache_bytes"], strict=True):
            assert num % plan["tasks"] == 0
            assert size / num <= 2**28 < size / (num - plan["tasks"] + 1e-9) or num == plan["tasks"]
        assert plan["journal_bytes"][0] == pytest.approx(8 * 10**9 + 4 * 0.00004 * 10**12)

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["--corpus", "lots"], "as in 1T, 300B or 5e9"),
            (["--corpus", "1T", "--priro", "x"], "did you mean prior?"),
            (["--corpus", "1T", "--edit_policy", "filtering"], "paper and reference_code only"),
            (["--corpus", "1T", "--max_length", "0"], "from 1"),
            (["--corpus", "1T", "--task_minutes", "0.5"], "from 1"),
            ([], "name a config"),
            (["--corpus", "1T", "--config", "x.yaml"], "name a config"),
        ],
    )
    def test_what_is_wrong_is_said(self, words, told, capsys):
        assert main(["plan", *words]) == 2
        assert told in capsys.readouterr().err


def test_auto_is_the_dtype_of_the_checkpoint(write, tmp_path):
    """Named in its config, or, where that is silent, that of its first weight."""
    model = make_llama().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "prior")
    config = json.loads((tmp_path / "prior" / "config.json").read_text())
    path = write(edit_policy="paper", prior=tmp_path / "prior")
    weights = estimate(path, find_card("h100")).memory.parts["prior"]
    assert weights == 2 * sum(p.numel() for p in model.parameters())
    for name in ("dtype", "torch_dtype"):
        config.pop(name, None)
    (tmp_path / "prior" / "config.json").write_text(json.dumps(config))
    _size.cache_clear()
    assert estimate(path, find_card("h100")).memory.parts["prior"] == weights


def test_a_misspelt_field_is_told(write, capsys):
    assert main(["plan", "--config", str(write()), "--learning_rat", "1"]) == 2
    assert "'learning_rat' is no field; did you mean learning_rate?" in capsys.readouterr().err
