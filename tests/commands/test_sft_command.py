"""`toedit sft`: TRL's script, its options and ours, on real runs of a tiny model."""

import gzip
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import TEXT, make_llama, make_tokenizer
from seen_rows import watch_rows

from toedit_collate.commands.main import main

ROOT = pathlib.Path(__file__).parents[2]
WORDS = TEXT.split()
SETTINGS = {
    "use_peft": True,
    "lora_target_modules": ["q_proj", "v_proj"],
    "max_length": 32,
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "edit_region": "below",  # the model is random: to it, all of the text is unlikely
    "edit_exclude_original": True,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tiny model with its tokenizer, and a folder of data with two splits."""
    folder = tmp_path_factory.mktemp("sft")
    model = make_llama(sharpness=6.0)
    model.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for split, first in (("train", 0), ("test", 3)):
        rows = [{"text": " ".join(WORDS[n % 9 : n % 9 + 16])} for n in range(first, first + 8)]
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / "data" / f"{split}.jsonl").write_text(lines)
    return folder


def write_config(inputs, output, **changes):
    settings = {
        "model_name_or_path": str(inputs / "model"),
        "dataset_name": str(inputs / "data"),
        "output_dir": str(output),
        **SETTINGS,
        **changes,
    }
    path = output.parent / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


@pytest.fixture
def seen():
    with watch_rows() as rows:
        yield rows


def source_rows(inputs, split):
    tokenizer = make_tokenizer()
    lines = (inputs / "data" / f"{split}.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    return {tuple((tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])[:32]) for text in texts}


def test_training_rows_are_edited_and_evaluation_rows_are_not(inputs, tmp_path, seen):
    saves = {"save_strategy": "steps", "save_steps": 2}  # TRL writes its model card then
    config = write_config(inputs, tmp_path / "out", journal=True, **saves)
    assert main(["sft", "--config", config]) == 0
    assert not set(seen.without_padding("trained")) & source_rows(inputs, "train")
    assert set(seen.without_padding("evaluated")) <= source_rows(inputs, "test")
    assert seen.evaluated
    out = tmp_path / "out"
    assert "token-edited on the fly" in (out / "README.md").read_text()
    assert (out / "adapter_model.safetensors").exists()
    assert list((out / "journal").rglob("*"))


def test_without_a_policy_it_is_trls_script(inputs, tmp_path, seen):
    config = write_config(inputs, tmp_path / "out", edit_policy="none")
    assert main(["sft", "--config", config]) == 0
    assert set(seen.without_padding("trained")) <= source_rows(inputs, "train")


def test_all_weights_with_a_prior_of_its_own(inputs, tmp_path, seen):
    config = write_config(inputs, tmp_path / "out", use_peft=False)
    prior = ["--prior", str(inputs / "model")]
    assert main(["sft", "--config", config, *prior, "--max_steps", "1"]) == 0
    assert len(seen.trained) == 2
    assert not set(seen.without_padding("trained")) & source_rows(inputs, "train")


def test_rows_that_the_column_edit_leaves_alone(inputs, tmp_path, seen, capsys):
    """TRL's packing would drop the column, and edit them."""
    data = tmp_path / "raw.jsonl"
    lines = (inputs / "data" / "train.jsonl").read_text().splitlines()
    data.write_text("\n".join(json.dumps({**json.loads(line), "edit": False}) for line in lines))
    changes = {"dataset_name": str(data), "eval_strategy": "no"}
    config = write_config(inputs, tmp_path / "out", **changes)
    assert main(["sft", "--config", config]) == 0
    assert seen.trained
    assert set(seen.without_padding("trained")) <= source_rows(inputs, "train")
    config = write_config(inputs, tmp_path / "packed", packing=True, **changes)
    assert main(["sft", "--config", config]) == 2
    assert "TRL's packing drops the data's column 'edit'" in capsys.readouterr().err


def test_trl_keeps_its_trainer(inputs, tmp_path):
    import trl

    before = trl.SFTTrainer
    main(["sft", "--config", write_config(inputs, tmp_path / "out", max_steps=1)])
    assert trl.SFTTrainer is before


def test_a_shared_prior_needs_lora(inputs, tmp_path, capsys):
    config = write_config(inputs, tmp_path / "out", use_peft=False)
    assert main(["sft", "--config", config]) == 2
    assert "name a prior by its folder or hub id" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "meant"), [("edit_treshold", "edit_threshold"), ("lerning_rate", "learning_rate")]
)
def test_a_typo_is_told_with_the_nearest_name(inputs, tmp_path, capsys, wrong, meant):
    config = write_config(inputs, tmp_path / "out", **{wrong: 0.5})
    with pytest.raises(SystemExit, match="2"):
        main(["sft", "--config", config])
    assert f"'{wrong}' is not a field; did you mean {meant}?" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["sft", f"--{wrong}", "0.5"])
    assert f"did you mean {meant}?" in capsys.readouterr().err


def test_help_has_trls_options_and_ours(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["sft", "--help"])
    help_text = capsys.readouterr().out
    assert all(
        f"--{name}" in help_text for name in ("learning_rate", "edit_threshold", "dataset_name")
    )


@pytest.mark.slow
def test_two_processes(inputs, tmp_path):
    """The command that `accelerate launch -m` runs, under torchrun; the rows of both ranks."""
    config = write_config(inputs, tmp_path / "out", journal=True, max_steps=2, logging_steps=2)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launch, "-m", "toedit_collate.commands.sft", "--config", config],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (share,) = re.findall(r"'toedit/changed_share': '?([\d.]+)", done.stdout)
    assert float(share) > 0.1
    from toedit_collate import Journal

    journal = Journal(tmp_path / "out" / "journal")
    sources = source_rows(inputs, "train")
    edited = [s for s in sources if journal.replay(torch.tensor(s), 1) != list(s)]
    assert len(edited) == len(sources) == 8  # two steps of two rows on two ranks: all of them


@pytest.mark.parametrize("name", ["10:30/train.JSONL", "train.csv.gz", "train*.txt"])
@pytest.mark.parametrize("streaming", [False, True])
def test_local_files_are_read_as_recipes_do(inputs, tmp_path, seen, monkeypatch, name, streaming):
    monkeypatch.chdir(tmp_path)
    texts = ["2024-03-01 and two", "2024-03-02 and five"]
    path = tmp_path / name.replace("*", "")
    path.parent.mkdir(exist_ok=True)
    content = {
        "JSONL": "\n".join(json.dumps({"text": text}) for text in texts),
        "gz": "text\n" + "\n".join(texts),
        "txt": "\n\n".join(texts),
    }[name.rpartition(".")[2]].encode()
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    config = write_config(
        inputs, tmp_path / "out", dataset_name=name, edit_policy="none", eval_strategy="no",
        dataset_streaming=streaming,
    )  # fmt: skip
    assert main(["sft", "--config", config]) == 0
    tokenizer = make_tokenizer()
    ids = {tuple(tokenizer(text + "<|eos|>")["input_ids"]) for text in texts}
    assert set(seen.without_padding("trained")) == ids


def test_a_part_of_a_local_file(inputs, tmp_path, seen):
    name = f"{inputs / 'data' / 'train.jsonl'}:train[:1]"
    config = write_config(
        inputs, tmp_path / "out", dataset_name=name, edit_policy="none", eval_strategy="no"
    )
    assert main(["sft", "--config", config]) == 0
    assert len(set(seen.without_padding("trained"))) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": "b', r"dataset_name .*x\.jsonl: line 2 is not JSON"),
        (None, r"dataset_name .*x\.jsonl: there is no such file or folder"),
    ],
)
def test_a_local_file_that_can_not_be_read(inputs, tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "x.jsonl").write_text(content)
    config = write_config(inputs, tmp_path / "out", dataset_name=str(tmp_path / "x.jsonl"))
    assert main(["sft", "--config", config]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_mixture_of_local_files(inputs, tmp_path, seen):
    sets = [{"path": str(inputs / "data" / f"{name}.jsonl")} for name in ("train", "test")]
    config = write_config(
        inputs, tmp_path / "out", dataset_name=None, datasets=sets, edit_policy="none",
        eval_strategy="no", max_steps=8,
    )  # fmt: skip
    assert main(["sft", "--config", config]) == 0
    both = source_rows(inputs, "train") | source_rows(inputs, "test")
    assert set(seen.without_padding("trained")) == both


def test_labels_of_many_draws_from_a_filled_cache(inputs, tmp_path, seen):
    """`toedit apply` fills the cache with draws; `toedit sft` learns them."""
    policy = {"edit_policy": "distill", "edit_num_draws": 8, "edit_redraw": "never"}
    cache = str(tmp_path / "cache")
    apply = ["apply", "--data", str(inputs / "data" / "train.jsonl"), "--cache", cache]
    apply += ["--prior", str(inputs / "model"), "--max-length", "32"]
    assert main([*apply, "--policy", "distill num_draws=8 redraw=never"]) == 0
    size = sum(path.stat().st_size for path in pathlib.Path(cache).rglob("*"))
    config = write_config(
        inputs, tmp_path / "out", use_peft=False, prior=str(inputs / "model"),
        decision_cache=cache, edit_region=None, edit_exclude_original=None, **policy,
    )  # fmt: skip
    assert main(["sft", "--config", config]) == 0
    # Inputs are the source text, and nothing had to be decided again.
    assert set(seen.without_padding("trained")) <= source_rows(inputs, "train")
    assert sum(path.stat().st_size for path in pathlib.Path(cache).rglob("*")) == size
