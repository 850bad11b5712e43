"""The code of README.md and docs/ runs, page by page, with tiny models in place of hub names."""

from __future__ import annotations

import argparse
import contextlib
import doctest
import functools
import pathlib
import re

import pytest
import torch
import yaml
from conftest import TEXT, make_llama, make_tokenizer
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trainees import AGGRESSIVE, dataset, documents, make_trainee, make_trainer

import toedit_collate
from toedit_collate import DecisionCache, EditPolicy, Prior, ToEditCollator
from toedit_collate.config.arguments import EditArguments
from toedit_collate.config.section import read_section

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {path.stem: path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
HUB_NAMES = ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B")
# Their pages are run where what they are of is installed: tests/integrations.
NOT_HERE = ("datatrove", "ray")
SMALL = {
    "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "max_steps": 2,
    "per_device_train_batch_size": 2, "save_strategy": "no", "dataloader_pin_memory": False,
    "gradient_checkpointing": False,
}  # fmt: skip


def code_of(name: str, language: str) -> list[str]:
    text = PAGES[name].read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def python_of(name: str) -> list[str]:
    blocks = code_of(name, "python")
    return [b for b in blocks if not re.search(rf"^(from|import) ({'|'.join(NOT_HERE)})", b, re.M)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_llama(sharpness=6.0).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def small(monkeypatch):
    """Trainings are of two steps, on a CPU; `load_dataset` gives a few rows."""
    import datasets
    import transformers
    import trl

    for module, name in ((transformers, "TrainingArguments"), (trl, "SFTConfig")):
        original = getattr(module, name)
        more = {"max_length": 64} if name == "SFTConfig" else {}
        monkeypatch.setattr(module, name, functools.partial(_make, original, {**SMALL, **more}))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: texts())


def _make(original, settings, *args, **kwargs):
    return original(*args, **{**kwargs, **settings})


def texts() -> Dataset:
    words = TEXT.split()
    return Dataset.from_dict({"text": [" ".join(words[n : n + 9]) for n in range(8)]})


def make_names(folder) -> dict:
    """What a page may take for granted."""
    tokenizer = make_tokenizer()
    model = make_trainee()
    model.config._name_or_path = folder
    trainee = make_trainee()
    trainee.config._name_or_path = folder
    rows = [{"input_ids": ids} for ids in documents(4)]
    input_ids = torch.tensor([ids[:8] for ids in documents(2)])

    def next_trainer(generation, weights):
        own = make_trainee() if weights is None else type(model).from_pretrained(weights)
        trainer, _ = make_trainer(
            f"out/{generation}", tokenizer, model=own, save_strategy="steps", save_steps=2
        )
        return trainer

    return {
        "__name__": "__main__",
        "prior": Prior(make_llama(), tokenizer),
        "policy": EditPolicy.paper(),
        "tokenizer": tokenizer,
        "model": model,
        "lora_model": get_peft_model(trainee, LoraConfig(target_modules=["q_proj"])),
        "dataset": texts(),
        "train_dataset": dataset([row["input_ids"] for row in rows]),
        "eval_dataset": dataset([row["input_ids"] for row in rows]),
        "input_ids": input_ids,
        "mask": torch.ones_like(input_ids),
        "labels": input_ids.clone(),
        "make_trainer": next_trainer,
    }


def run_page(name, names, folder) -> None:
    for block in python_of(name):
        for hub_name in HUB_NAMES:
            block = block.replace(hub_name, folder)
        exec(compile(block, f"{name}.md", "exec"), names)


@pytest.mark.parametrize(
    "name",
    [name for name in PAGES if python_of(name) and name not in ("caches", "frameworks")],
)
@pytest.mark.usefixtures("small")
def test_the_code_runs(name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(name, make_names(folder), folder)


@pytest.mark.usefixtures("small")
def test_the_code_of_caches_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = make_names(folder)
    # The job of its own that the page tells of.
    cache = DecisionCache("out/decisions")
    collator = ToEditCollator(names["prior"], names["policy"], cache=cache)
    collator(list(names["train_dataset"])).to("cpu")
    cache.flush()
    run_page("caches", names, folder)


@pytest.mark.usefixtures("small")
def test_the_code_of_frameworks_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # So that something is edited: a random model finds no token easy.
    monkeypatch.setattr(EditPolicy, "paper", classmethod(lambda cls, **kwargs: AGGRESSIVE))
    names = make_names(folder)
    run_page("frameworks", names, folder)
    # Its last loop: two epochs of four rows, and no evaluation.
    assert names["collator"].stats["batches"] == 4
    assert names["collator"].stats["changed"] > 0


@pytest.mark.parametrize("name", PAGES)
def test_every_yaml_is_one(name):
    for block in code_of(name, "yaml"):
        content = yaml.safe_load(block)
        if "toedit" in content:
            assert read_section(content["toedit"]).policy() is not None
        ours = {key: value for key, value in content.items() if key.startswith(("edit_", "prior"))}
        EditArguments(**ours)


def options_of(command: str) -> set[str] | None:
    """What a subcommand takes; None: fields of dataclasses, too."""
    from toedit_collate.commands import main as module

    found: list[argparse.ArgumentParser] = []
    parse = argparse.ArgumentParser.parse_args

    def keep(self, *args, **kwargs):
        found.append(self)
        raise SystemExit

    argparse.ArgumentParser.parse_args = keep
    try:
        with contextlib.suppress(SystemExit):
            module.main([])
    finally:
        argparse.ArgumentParser.parse_args = parse
    (subparsers,) = [a for a in found[0]._actions if isinstance(a, argparse._SubParsersAction)]
    assert command in subparsers.choices, f"there is no command toedit {command}"
    if command in ("sft", "plan", "recipes"):
        return None
    parsers = [subparsers.choices[command]]
    for action in parsers[0]._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    return {word for parser in parsers for one in parser._actions for word in one.option_strings}


@pytest.mark.parametrize("name", PAGES)
def test_every_command_is_there_with_its_options(name):
    for block in code_of(name, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.split("#")[0].split()
            if words[:1] == ["toedit"]:
                options = options_of(words[1])
                given = {word for word in words if word.startswith("--")}
                assert options is None or given <= options, line


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    path = PAGES[name]
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("name", PAGES)
def test_every_file_of_the_repository_that_is_named_is_there(name):
    named = re.findall(r"recipes/configs/[\w/.]+\.(?:yaml|json)", PAGES[name].read_text())
    for path in named:
        assert (ROOT / path).is_file() or "NAME" in path, path


@pytest.mark.parametrize("name", toedit_collate.__all__)
def test_a_public_name_has_an_example_that_runs(name):
    """In its docstring, or in the code of a page, all of which runs above."""
    examples = doctest.DocTestParser().get_examples(getattr(toedit_collate, name).__doc__)
    in_pages = any(re.search(rf"\b{name}\(", block) for page in PAGES for block in python_of(page))
    assert any(example.want for example in examples) or in_pages
    assert not any(doctest.SKIP in example.options for example in examples)
