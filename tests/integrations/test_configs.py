"""The example configs in recipes/configs, through the frameworks that they are for.

Only what a CPU has not is changed in them: the model, the data, and settings of the card.
"""

import json
import os
import pathlib

import pytest
import yaml
from conftest import TEXT, make_llama, make_tokenizer
from seen_rows import watch_rows

from toedit_collate import EditPolicy
from toedit_collate.config.section import read_section

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"  # it sends telemetry

CONFIGS = pathlib.Path(__file__).parents[2] / "recipes" / "configs"
WORDS = TEXT.split()
# To a random model all of the text is unlikely: a policy that selects something.
SELECTS = {"region": "below", "exclude_original": True}
ROWS = [
    {"problem": " ".join(WORDS[n : n + 4]), "solution": " ".join(WORDS[n % 24 : n % 24 + 8])}
    for n in range(40)
]
CPU = {"bf16": False, "output_dir": "out", "max_steps": 2, "save_steps": 2, "logging_steps": 1}
LLAMA_3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>",
           "<|end_header_id|>"]  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model and the data, in which the run takes place."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": LLAMA_3})
    model = make_llama(sharpness=6.0, max_position_embeddings=2048)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("framework", ["axolotl", "llamafactory"])
def test_distillation(framework):
    """The section alone, which needs neither framework."""
    edit = read_section(read(f"{framework}/qwen_0_5b_distill.yaml")["toedit"])
    assert edit.policy() == EditPolicy.distill(redraw="never")
    assert edit.decision_cache.endswith("draws")


def read(path):
    return yaml.safe_load((CONFIGS / path).read_text())


def changed(config, changes):
    """A config with some of its values changed: of keys that it has, and settings of a CPU."""
    section = {**config["toedit"], **SELECTS}
    return {**config, **changes, "toedit": section}


def write(place, config):
    path = place / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def was_edited(rows, tokenizer):
    """Whether none of the rows has a solution of the data in it."""
    texts = tokenizer.batch_decode(rows)
    return not any(row["solution"] in text for text in texts for row in ROWS)


@pytest.mark.slow
def test_axolotl(place):
    pytest.importorskip("axolotl", reason="Axolotl is not installed here")
    from axolotl.cli.train import do_cli
    from axolotl.integrations.base import PluginManager

    config = read("axolotl/llama3_8b_lora_sft.yaml")
    (data,) = config["datasets"]
    changes = {
        **CPU,
        "base_model": str(place / "model"),
        "datasets": [{**data, "path": str(place / "data.jsonl"), "ds_type": "json"}],
        "dataset_prepared_path": str(place / "prepared"),
        "sequence_len": 128,
        "val_set_size": 0.2,
        "eval_sample_packing": False,
        "fp16": False, "tf32": False, "attn_implementation": "sdpa", "dataset_num_proc": 1,
        "dataloader_num_workers": 0, "dataloader_pin_memory": False,
        **{f"lora_{part}_kernel": False for part in ("mlp", "qkv", "o")},  # Triton
    }  # fmt: skip
    PluginManager.get_instance().plugins.clear()
    with watch_rows() as seen:
        do_cli(config=write(place, changed(config, changes)))
    assert len(seen.trained) >= 2
    assert was_edited(seen.trained, make_tokenizer())
    assert seen.evaluated
    assert not was_edited(seen.evaluated, make_tokenizer())
    assert (place / "out" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_axolotls_own_check_takes_the_config_as_it_is(monkeypatch):
    """The file with no change; for a card that has bfloat16."""
    pytest.importorskip("axolotl", reason="Axolotl is not installed here")
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    config = DictDefault(read("axolotl/llama3_8b_lora_sft.yaml"))
    prepare_plugins(config)
    checked = validate_config(
        config,
        capabilities={"bf16": True, "n_gpu": 1, "compute_capability": "sm_90"},
        env_capabilities={"torch_version": "2.9.0"},
    )
    assert checked.toedit == {"policy": "paper", "prior": "shared"}
    assert checked.sample_packing is True


@pytest.mark.slow
def test_llamafactory(place, monkeypatch):
    pytest.importorskip("llamafactory", reason="LLaMA-Factory is not installed here")
    from toedit_collate.integrations.llamafactory import main

    config = read("llamafactory/llama3_8b_lora_sft.yaml")
    info = json.loads((CONFIGS / "llamafactory" / "dataset_info.json").read_text())
    del info["oss_instruct"]["hf_hub_url"]
    info["oss_instruct"]["file_name"] = "data.jsonl"
    (place / "dataset_info.json").write_text(json.dumps(info))
    changes = {
        **CPU,
        "model_name_or_path": str(place / "model"),
        "dataset_dir": str(place),
        "cutoff_len": 128,
        "use_cpu": True, "preprocessing_num_workers": 1, "val_size": 0.2,
        "eval_strategy": "steps", "eval_steps": 2, "overwrite_output_dir": True,
    }  # fmt: skip
    monkeypatch.setattr("sys.argv", ["train"])
    with watch_rows() as seen:
        assert main(["train", write(place, changed(config, changes))]) == 0
    assert len(seen.trained) == 16  # two steps, 8 rows accumulated
    assert was_edited(seen.trained, make_tokenizer())
    assert seen.evaluated
    assert not was_edited(seen.evaluated, make_tokenizer())
    assert (place / "out" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_llamafactorys_own_check_takes_the_config_as_it_is(monkeypatch):
    pytest.importorskip("llamafactory", reason="LLaMA-Factory is not installed here")
    from llamafactory.hparams import get_train_args

    from toedit_collate.integrations.llamafactory import read_config

    monkeypatch.chdir(CONFIGS.parents[1])
    config = read("llamafactory/llama3_8b_lora_sft.yaml")
    rest, edit = read_config({**config, "bf16": False, "use_cpu": True})
    *_, finetuning, _ = get_train_args(rest)
    assert finetuning.finetuning_type == "lora"
    assert edit.policy().top_k == 8
