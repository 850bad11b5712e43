"""LLaMA-Factory itself with the section `toedit:`, on a CPU, where it is installed.

LLaMA-Factory pins its own versions, so it has an environment of its own: see
scripts/version_matrix.py.
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import pytest
import yaml
from conftest import TEXT, make_llama, make_tokenizer
from seen_rows import watch_rows

pytest.importorskip("llamafactory", reason="LLaMA-Factory is not installed here")

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
WORDS = TEXT.split()
SECTION = {"region": "below", "exclude_original": True}
SETTINGS = {
    "stage": "sft",
    "do_train": True,
    "dataset": "texts",
    "template": "empty",
    "cutoff_len": 128,
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "val_size": 0.25,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "dataloader_num_workers": 0,
    "preprocessing_num_workers": 1,
    "overwrite_output_dir": True,
}
LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llamafactory")
    make_llama(sharpness=6.0).save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    rows = [
        {"instruction": WORDS[n], "input": "", "output": " ".join(WORDS[n % 24 : n % 24 + 8])}
        for n in range(24)
    ]
    (folder / "texts.json").write_text(json.dumps(rows))
    plain = [{"text": row["output"]} for row in rows]
    (folder / "plain.json").write_text(json.dumps(plain))
    info = {
        "texts": {"file_name": "texts.json"},
        "plain": {"file_name": "plain.json", "columns": {"prompt": "text"}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def write_config(inputs, out, **changes):
    settings = {
        **SETTINGS,
        "model_name_or_path": str(inputs / "model"),
        "dataset_dir": str(inputs),
        "output_dir": str(out / "run"),
        "toedit": SECTION,
        **changes,
    }
    config = pathlib.Path(out) / "config.yaml"
    config.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
    return str(config)


def train(inputs, out, **changes):
    from toedit_collate.integrations.llamafactory import main

    argv = sys.argv
    try:
        with watch_rows() as seen:
            assert main(["train", write_config(inputs, out, **changes)]) == 0
    finally:
        sys.argv = argv
    return seen


def count_unedited(rows, inputs):
    """How many rows are of the source's texts, whole or in pieces: by their pairs of tokens."""
    tokenizer = make_tokenizer()
    sources = [row["output"] for row in json.loads((inputs / "texts.json").read_text())]
    known = set()
    for source in sources:
        ids = tokenizer(source)["input_ids"]
        known |= set(itertools.pairwise(ids))
    counted = 0
    for row in rows:
        pairs = [pair for pair in itertools.pairwise(row) if tokenizer.pad_token_id not in pair]
        counted += sum(pair in known for pair in pairs) > 0.5 * len(pairs)
    return counted


@pytest.mark.parametrize(
    "changes",
    [
        LORA,
        {"finetuning_type": "full", "toedit": {**SECTION, "prior": "MODEL"}},
        {**LORA, "stage": "pt", "dataset": "plain", "cutoff_len": 16},
        {**LORA, "packing": True},
        {**LORA, "toedit": {**SECTION, "journal": True, "refresh": 1}},
    ],
    ids=["lora", "full", "pt", "packing", "journal"],
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


def test_neat_packing(inputs, tmp_path):
    """A 4-D mask, with positions that separate the documents of a row."""
    seen = train(inputs, tmp_path, **LORA, neat_packing=True, flash_attn="sdpa")
    assert seen.trained
    assert count_unedited(seen.trained, inputs) == 0
    assert count_unedited(seen.evaluated, inputs) == len(seen.evaluated)


def test_without_a_policy_rows_are_as_they_were(inputs, tmp_path):
    seen = train(inputs, tmp_path, **LORA, toedit={"policy": "none"})
    assert count_unedited(seen.trained, inputs) == len(seen.trained) > 0


def test_resume_goes_on_with_the_same_rows(inputs, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 2}
    whole, first = tmp_path / "whole", tmp_path / "first"
    whole.mkdir()
    first.mkdir()
    all_rows = train(inputs, whole, **LORA, max_steps=4).trained
    train(inputs, first, **{**LORA, **saves}, max_steps=2)
    checkpoint = str(first / "run" / "checkpoint-2")
    changes = {"max_steps": 4, "resume_from_checkpoint": checkpoint}
    assert train(inputs, first, **LORA, **changes).trained == all_rows[4:]


def test_two_processes(inputs, tmp_path):
    section = {**SECTION, "journal": True}
    config = write_config(inputs, tmp_path, **LORA, toedit=section, eval_strategy="no")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, "-m", "toedit_collate.integrations.llamafactory", "train", config],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "'toedit/changed_share'" in done.stdout + done.stderr


def test_a_typo_is_told(inputs, tmp_path, capsys):
    from toedit_collate.integrations.llamafactory import main

    assert main(["train", write_config(inputs, tmp_path, toedit={"tresh": 0.9})]) == 2
    assert "'tresh' is not a field; did you mean threshold?" in capsys.readouterr().err
