"""The plugin in Axolotl itself: real runs on a CPU, where Axolotl is installed.

Axolotl pins its own versions, so it has an environment of its own: see scripts/version_matrix.py.
"""

import json
import os
import pathlib

import pytest
import yaml
from conftest import TEXT, make_llama, make_tokenizer
from seen_rows import watch_rows

pytest.importorskip("axolotl", reason="Axolotl is not installed here")
os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"  # it sends telemetry

pytestmark = pytest.mark.slow
WORDS = TEXT.split()
SETTINGS = {
    "plugins": ["toedit_collate.integrations.axolotl.ToEditPlugin"],
    "toedit": {"region": "below", "exclude_original": True},
    "val_set_size": 0.25,
    "sequence_len": 64,
    "max_steps": 2,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "optimizer": "adamw_torch",
    "lr_scheduler": "constant",
    "eval_strategy": "steps",
    "eval_steps": 1,
    "logging_steps": 1,
    "save_strategy": "no",
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "gradient_checkpointing": False,
    "attn_implementation": "sdpa",
    "lora_mlp_kernel": False,  # Triton, which a CPU has not
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "dataset_num_proc": 1,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
    "special_tokens": {"pad_token": "<|pad|>"},
}
NO_EVALUATION = {"eval_strategy": None, "eval_steps": None}
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj"]}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("axolotl")
    make_llama(sharpness=6.0).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    rows = [{"text": " ".join(WORDS[n % 24 : n % 24 + 8])} for n in range(24)]
    (folder / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def train(inputs, out, **changes):
    from axolotl.cli.train import do_cli
    from axolotl.integrations.base import PluginManager

    PluginManager.get_instance().plugins.clear()  # it keeps those of an earlier run
    settings = {
        **SETTINGS,
        "base_model": str(inputs / "model"),
        "datasets": [{"path": str(inputs / "data.jsonl"), "ds_type": "json", "type": "completion"}],
        "dataset_prepared_path": str(out / "prepared"),
        "output_dir": str(out / "run"),
        **changes,
    }
    config = pathlib.Path(out) / "config.yaml"
    config.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
    with watch_rows() as seen:
        do_cli(config=str(config))
    return seen


def source_texts(inputs):
    """The rows as text, whatever a framework puts around and between them."""
    lines = (inputs / "data.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def count_unedited(rows, inputs):
    """How many rows have a whole document of the source in them."""
    tokenizer = make_tokenizer()
    texts = tokenizer.batch_decode(rows)
    return sum(any(source in text for source in source_texts(inputs)) for text in texts)


@pytest.mark.parametrize(
    "changes",
    [
        LORA,
        {"toedit": {**SETTINGS["toedit"], "prior": "MODEL"}},
        {**LORA, "sample_packing": True, "eval_sample_packing": False},
        {**LORA, "toedit": {**SETTINGS["toedit"], "journal": True, "refresh": 1}},
    ],
    ids=["lora", "full", "packed", "journal"],
)
def test_training_rows_are_edited_and_evaluation_rows_are_not(inputs, tmp_path, changes):
    if "prior" in changes.get("toedit", {}):
        changes["toedit"]["prior"] = str(inputs / "model")
    seen = train(inputs, tmp_path, **changes)
    assert seen.trained
    assert seen.evaluated
    print(f"rows: {len(seen.trained)} trained, {len(seen.evaluated)} evaluated")  # for -rP
    assert count_unedited(seen.trained, inputs) == 0
    assert count_unedited(seen.evaluated, inputs) == len(seen.evaluated)


def test_without_the_plugin_rows_are_as_they_were(inputs, tmp_path):
    seen = train(inputs, tmp_path, **LORA, plugins=None, toedit=None)
    assert count_unedited(seen.trained, inputs) == len(seen.trained) > 0


def test_streaming_pretraining(inputs, tmp_path):
    files = str(inputs / "data.jsonl")
    source = [{"path": "json", "data_files": files, "split": "train", "type": "pretrain"}]
    changes = {"pretraining_dataset": source, "datasets": None, "val_set_size": None}
    accelerator = {"dispatch_batches": False, "split_batches": False}
    seen = train(
        inputs, tmp_path, **LORA, **changes, **NO_EVALUATION, accelerator_config=accelerator
    )
    assert seen.trained
    assert count_unedited(seen.trained, inputs) == 0


def test_resume_goes_on_with_the_same_rows(inputs, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 2}
    whole, first = tmp_path / "whole", tmp_path / "first"
    whole.mkdir()
    first.mkdir()
    all_rows = train(inputs, whole, **LORA, max_steps=4).trained
    train(inputs, first, **{**LORA, **saves}, max_steps=2)
    checkpoint = str(first / "run" / "checkpoint-2")
    rest = train(inputs, first, **LORA, max_steps=4, resume_from_checkpoint=checkpoint).trained
    assert rest == all_rows[4:]


def test_a_typo_stops_axolotl_with_our_message(inputs, tmp_path):
    with pytest.raises(ValueError, match="'tresh' is not a field; did you mean threshold"):
        train(inputs, tmp_path, **LORA, toedit={"tresh": 0.9})


def test_preference_training_is_refused(inputs, tmp_path):
    with pytest.raises(ValueError, match="rl: dpo trains on something else"):
        train(inputs, tmp_path, **LORA, rl="dpo")
