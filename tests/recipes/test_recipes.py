"""The recipes and their configs, run as scripts on tiny models."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import warnings

import pytest
import torch
import yaml
from common.arguments import DataArguments, RunArguments
from common.formats import FORMATS
from conftest import make_llama, make_tokenizer
from datasets import Dataset
from running import (
    CONFIGS,
    ON_CPU,
    RECIPES,
    ROOT,
    STRONG,
    make_files,
    metrics,
    options,
    run_recipe,
    weights,
    write_choices,
)
from transformers import AutoModelForCausalLM

from toedit_collate import Journal
from toedit_collate.commands.main import main
from toedit_collate.config.arguments import EditArguments
from toedit_collate.config.parse import parse

parsing = sys.modules["toedit_collate.config.parse"]  # the package has a function of that name

YAMLS = sorted(CONFIGS.glob("*.yaml"))
TINY = [path for path in YAMLS if path.stem.endswith("_tiny")]
SCRIPTS = ("pretrain", "cpt", "sft_lora", "self_edit")


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


def script_of(path: pathlib.Path) -> str:
    (name,) = [name for name in SCRIPTS if path.stem.startswith(name)]
    return name


def base(files, **more) -> dict:
    return {
        **ON_CPU, "model_name_or_path": files.model, "prior": files.model,
        "dataset_name": files.docs, "max_length": 64, "per_device_train_batch_size": 4,
        "num_train_epochs": 1, "learning_rate": 1e-3, **more,
    }  # fmt: skip


class TestConfigs:
    def test_the_issue_s_configs_are_there(self):
        assert {script_of(path) for path in TINY} == set(SCRIPTS)
        assert len(YAMLS) >= 20
        kinds = {path.stem for path in (CONFIGS / "accelerate").glob("*.yaml")}
        assert kinds == {"single_gpu", "ddp", "fsdp2", "deepspeed_zero3", "multi_node"}

    @pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
    def test_each_can_be_parsed(self, path, files, monkeypatch):
        """Every key is a field of one of the classes, and the header names the file."""
        monkeypatch.setattr(parsing, "demo_model", lambda name: files.model)
        monkeypatch.setattr(parsing, "demo_config", lambda name: files.model)
        text = path.read_text()
        assert f"recipes/{script_of(path)}.py --config recipes/configs/{path.name}" in " ".join(
            text.replace("\\\n#", " ").split()
        )
        content = yaml.safe_load(text)
        parsed = parse(*_classes(script_of(path)), args=["--config", str(path), "--use_cpu"])
        run_args, data, edit = parsed[:3]
        assert run_args.given == {**content, "use_cpu": True}
        assert "output_dir" in content
        for key, value in content.items():
            assert len([one for one in parsed if hasattr(one, key)]) == 1, key
            if key.startswith("edit_") and key != "edit_policy":
                assert getattr(edit.policy(), key[5:]) == value
        assert data.dataset_format is None or data.dataset_format in FORMATS

    def test_parsing_warns_of_no_name_that_users_did_not_choose(self, files, monkeypatch):
        monkeypatch.setattr(parsing, "demo_model", lambda name: files.model)
        monkeypatch.setattr(parsing, "demo_config", lambda name: files.model)
        path = CONFIGS / "pretrain_aligned_tiny.yaml"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            parse(*_classes(script_of(path)), args=["--config", str(path)])
        assert not [one for one in caught if "gradient_checkpointing" in str(one.message)]

    def test_the_page_names_what_is_there(self):
        section = (ROOT / "docs" / "recipes.md").read_text()
        names = re.findall(r"recipes/[\w/.]+\.(?:py|yaml)", section)
        names += [
            f"recipes/configs/{name}.yaml" for name in re.findall(r"`(\w+_\w+_tiny)`", section)
        ]
        assert len(names) > 4
        assert all((ROOT / name).is_file() for name in names)
        formats = set(re.search(r"instruction sets: ([^.]*)\.", section).group(1).split("`")[1::2])
        assert formats == set(FORMATS)

    @pytest.mark.parametrize(
        "path", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda p: p.stem
    )
    def test_accelerate_takes_its_configs(self, path):
        from accelerate.commands.config.config_args import load_config_from_file

        config = load_config_from_file(str(path))
        assert config.mixed_precision == "bf16"

    @pytest.mark.slow
    @pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
    def test_each_trains_two_steps_on_a_tiny_model(self, path, files, tmp_path):
        content = {**yaml.safe_load(path.read_text()), **_local(path, files)}
        own = tmp_path / path.name
        own.write_text(
            yaml.safe_dump({**content, "max_steps": 2, "output_dir": str(tmp_path / "out")})
        )
        run_recipe(script_of(path), "--config", str(own))
        found = metrics(tmp_path / "out")
        assert math.isfinite(found["train"]["loss"])
        assert found["edit"]["scored"] > 0


def _classes(name: str) -> list[type]:
    """The dataclasses that a recipe parses."""
    import runpy

    from trl import ModelConfig, SFTConfig

    script = runpy.run_path(str(RECIPES / f"{name}.py"), run_name="recipe")
    own = [
        value
        for value in script.values()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and value.__module__ == "recipe"
    ]
    classes = [RunArguments, DataArguments, EditArguments, *own, SFTConfig]
    return classes if name == "pretrain" else [*classes, ModelConfig]


def _local(path: pathlib.Path, files) -> dict:
    """Another model and other data for a config, and no GPU."""
    content = yaml.safe_load(path.read_text())
    models = ("model_name_or_path", "config_name", "tokenizer_name", "prior", "chat_template_path")
    local = {key: files.model for key in models if content.get(key, "shared") != "shared"}
    rows = files.docs
    if content.get("assistant_only_loss"):
        rows = files.messages
    elif content.get("dataset_format") or content.get("dataset_config") == "chat":
        rows = files.chat
    local |= {"held_out": {"docs": rows}, "dataset_config": None}
    if "datasets" in content:
        local["datasets"] = [{**source, "name": rows} for source in content["datasets"]]
    else:
        local["dataset_name"] = rows
    if content.get("synthetic_dataset_name"):
        local |= {"synthetic_dataset_name": files.docs, "synthetic_dataset_config": None}
    if "eos_token" in content:
        local["eos_token"] = "<|im_end|>"
    # What needs a GPU, bitsandbytes or lm-eval.
    for key in ("eval_tasks", "attn_implementation", "prior_quantization", "config_overrides"):
        if key in content:
            local[key] = None
    if content.get("load_in_4bit"):
        local["load_in_4bit"] = False
    if "optim" in content:
        local["optim"] = "adamw_torch"
    on_cpu = {
        key: yaml.safe_load(str(value)) for key, value in ON_CPU.items() if key != "save_strategy"
    }
    if "global_batch_size" in content:
        local |= {"per_device_train_batch_size": 2, "global_batch_size": 4}
    else:
        local["gradient_accumulation_steps"] = 1
    return {**local, **on_cpu, "save_strategy": "no", "max_length": 64}


class TestRuns:
    """Whole runs of the scripts."""

    @pytest.fixture(scope="class")
    def compared(self, files, tmp_path_factory):
        """A comparison of two policies over two seeds."""
        folder = tmp_path_factory.mktemp("compared")
        words = options(
            **base(
                files, output_dir=folder, prior="shared", use_peft="true",
                lora_target_modules="all-linear", dataset_columns={"text": "body"},
                held_out={"docs": files.docs, "other": files.other_docs},
                compare_baseline="true", compare_policies=["paper,threshold=0.3"], seeds=[3, 4],
                **STRONG,
            )
        )  # fmt: skip
        run_recipe("cpt", *words)
        return folder, words

    def test_a_comparison_has_a_folder_for_each_run(self, compared):
        folder, _ = compared
        found = metrics(folder)
        names = ["none", "paper,threshold=0.3,exclude_original=True", "paper,threshold=0.3"]
        assert [(r["policy"], r["seed"]) for r in found["runs"]] == [
            (name, seed) for seed in (3, 4) for name in names
        ]
        for one in found["runs"]:
            here = pathlib.Path(one["folder"])
            assert metrics(here)["held_out"] == one["held_out"]
            assert {"config.yaml", "policy.json", "README.md"} <= {p.name for p in here.iterdir()}
            policy = json.loads((here / "policy.json").read_text())
            assert (policy is None) == (one["policy"] == "none")
            assert policy is None or policy["seed"] == one["seed"]
            assert bool(one["edit"]) == (one["policy"] != "none")
        strong = found["runs"][1]["edit"]
        assert strong["changed"] == strong["selected"] > 10
        assert (folder / "comparison.md").read_text().split("\n\n")[0].count("\n") == 1 + len(names)

    def test_differences_are_taken_seed_by_seed(self, compared):
        folder, _ = compared
        found = metrics(folder)
        plain, strong, _ = found["comparison"]
        value = {(r["policy"], r["seed"]): r["held_out"]["docs"] for r in found["runs"]}
        differences = [value[strong["policy"], s] - value["none", s] for s in (3, 4)]
        measure = strong["measures"]["perplexity docs"]
        assert measure["difference"] == pytest.approx(sum(differences) / 2)
        spread = abs(differences[0] - differences[1]) / 2  # the standard error of two
        assert measure["difference_error"] == pytest.approx(spread)
        assert plain["measures"]["perplexity docs"]["difference"] is None
        assert abs(differences[0]) > 0

    def test_finished_runs_are_not_made_again(self, compared):
        folder, words = compared
        times = {p: p.stat().st_mtime_ns for p in folder.rglob("adapter_model.safetensors")}
        assert len(times) == 6
        gone = folder / "none" / "seed-4" / "metrics.json"
        before = metrics(gone.parent)
        gone.unlink()
        run_recipe("cpt", *words)
        after = {p: p.stat().st_mtime_ns for p in folder.rglob("adapter_model.safetensors")}
        again = [p for p in times if times[p] != after[p]]
        assert again == [gone.parent / "adapter_model.safetensors"]
        assert metrics(gone.parent)["held_out"] == before["held_out"]  # and it is the same run

    def test_the_baseline_is_what_the_trainer_alone_makes(self, compared, files):
        """Nothing of ours touches it."""
        from datasets import load_dataset
        from peft import LoraConfig
        from transformers import set_seed
        from trl import SFTConfig, SFTTrainer

        folder, _ = compared
        set_seed(3)
        rows = load_dataset("json", data_files=files.docs, split="train")
        trainer = SFTTrainer(
            model=files.model,
            args=SFTConfig(
                output_dir=str(folder / "plain"), use_cpu=True, bf16=False, report_to="none",
                disable_tqdm=True, gradient_checkpointing=False, save_strategy="no", max_length=64,
                per_device_train_batch_size=4, num_train_epochs=1, learning_rate=1e-3, seed=3,
                data_seed=3, model_init_kwargs={"dtype": "float32"},
            ),
            train_dataset=rows,
            processing_class=make_tokenizer(),
            peft_config=LoraConfig(
                r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear",
                task_type="CAUSAL_LM", bias="none",
            ),
        )  # fmt: skip
        trainer.train()
        ours = weights(folder / "none" / "seed-3")
        plain = {name: p.detach() for name, p in trainer.model.named_parameters() if "lora" in name}
        assert len(ours) == len(plain) > 0
        for name, tensor in ours.items():
            torch.testing.assert_close(plain[name.replace(".weight", ".default.weight")], tensor)

    def test_a_run_can_be_made_again_from_its_folder(self, compared, tmp_path):
        folder, _ = compared
        one = folder / "paper,threshold=0.3,exclude_original=True" / "seed-3"
        run_recipe("cpt", *options(config=one / "config.yaml", output_dir=tmp_path))
        assert metrics(tmp_path)["held_out"] == metrics(one)["held_out"]
        assert metrics(tmp_path)["edit"]["changed"] == metrics(one)["edit"]["changed"]

    def test_the_folder_says_what_was_done(self, compared):
        folder, _ = compared
        one = folder / "paper,threshold=0.3,exclude_original=True" / "seed-3"
        edit = metrics(one)["edit"]
        card = (one / "README.md").read_text()
        assert card.startswith("---")
        assert "library_name" in card  # TRL's card is there, too
        assert f"{edit['changed']:,} changed" in card
        assert "the frozen base of this model itself" in card
        assert "paper,threshold=0.3,exclude_original=True" in card
        baseline = (folder / "none" / "seed-3" / "README.md").read_text()
        assert "this run is a baseline" in baseline

    def test_a_killed_run_goes_on(self, files, tmp_path):
        """With the same weights as one that was not killed."""
        words = base(
            files, edit_redraw="epoch", num_train_epochs=2, save_strategy="steps", save_steps=3,
            journal="true", **STRONG,
        )  # fmt: skip
        run_recipe("cpt", *options(**{**words, "output_dir": tmp_path / "whole"}))
        part = options(**{**words, "output_dir": tmp_path / "part"})
        run_recipe("cpt", *part)
        # As a kill while a checkpoint was written leaves it.
        last = tmp_path / "part" / "checkpoint-12"
        (last / "trainer_state.json").unlink()
        run_recipe("cpt", *part, "--resume_from_checkpoint", "true")
        whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "part")
        for name, tensor in whole.items():
            torch.testing.assert_close(resumed[name], tensor)
        losses = [metrics(tmp_path / name)["train"]["loss"] for name in ("whole", "part")]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3)
        state = json.loads((last / "trainer_state.json").read_text())
        assert state["global_step"] == 12
        journals = [Journal(tmp_path / name / "journal") for name in ("whole", "part")]
        assert journals[0].stats() == journals[1].stats()

    def test_synthetic_tokens_are_mixed_in(self, files, tmp_path):
        words = base(files, config_name=files.model, synthetic_dataset_name=files.other_docs,
                     synthetic_dataset_columns={"text": "body"}, packing="true",
                     packing_strategy="bfd_split", edit_policy="none")  # fmt: skip
        del words["model_name_or_path"]
        losses = {}
        for fraction in (0, 0.5, 1):
            folder = tmp_path / str(fraction)
            run_recipe(
                "pretrain", *options(**words, synthetic_fraction=fraction, output_dir=folder)
            )
            losses[fraction] = metrics(folder)["train"]["loss"]
        assert len(set(losses.values())) == 3
        with pytest.raises(SystemExit):
            run_recipe("pretrain", *options(**words, synthetic_fraction=25, output_dir=tmp_path))

    def test_pretraining_starts_from_scratch_and_streams(self, files, tmp_path):
        words = base(
            files, config_name=files.model, config_overrides={"num_hidden_layers": 1},
            dataset_streaming="true", max_steps=3, packing="true", output_dir=tmp_path,
            held_out={"docs": files.docs}, edit_policy="none",
        )  # fmt: skip
        del words["model_name_or_path"]
        run_recipe("pretrain", *options(**words))
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert model.config.num_hidden_layers == 1
        assert metrics(tmp_path)["held_out"]["docs"] == pytest.approx(
            make_llama().vocab_size, rel=1
        )

    def test_generations_of_an_adapter_go_on(self, files, tmp_path):
        """The second starts with the adapter of the first, which is also its prior."""
        words = base(files, generations=2, start="previous", use_peft="true", prior="shared",
                     lora_target_modules="all-linear", learning_rate=0, output_dir=tmp_path,
                     held_out={"docs": files.docs}, **STRONG)  # fmt: skip
        run_recipe("self_edit", *options(**words))
        first, second = (weights(tmp_path / f"generation-{n}") for n in (1, 2))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(tensor.abs().sum() > 0 for name, tensor in first.items() if "lora_A" in name)

    def test_generations(self, files, tmp_path):
        words = options(
            **base(files, output_dir=tmp_path, generations=2, held_out={"docs": files.docs},
                   compare_baseline="true", seeds=[0], **STRONG)
        )  # fmt: skip
        run_recipe("self_edit", *words)
        plain, edited = metrics(tmp_path)["runs"]
        assert list(edited["held_out"]) == ["generation 0", "generation 1", "generation 2"]
        assert plain["held_out"]["generation 0"] == edited["held_out"]["generation 0"]
        assert plain["held_out"]["generation 2"] != edited["held_out"]["generation 2"]
        here = pathlib.Path(edited["folder"])
        journal = Journal(here / "journal")
        assert journal.generations == [1, 2]
        assert journal.stats()[2]["changed"] == edited["edit"]["changed"] > 0
        assert len(json.loads((here / "generations.json").read_text())) == 3


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (lambda files: {"dataset_name": "nowhere.jsonl"}, r"nowhere\.jsonl.*no such file"),
            (lambda files: {"prior": "shared"}, r"prior is 'shared'.*use_peft"),
            (lambda files: {"prior": "./nowhere"}, r"prior '\./nowhere' can't be loaded"),
            (
                lambda files: {"dataset_name": files.instruct},
                r"problem, solution.*dataset_columns.*dataset_format",
            ),
        ],
    )
    def test_bad_values_are_named(self, files, tmp_path, changes, message):
        words = options(**base(files, output_dir=tmp_path, **changes(files)))
        with pytest.raises(SystemExit, match=message):
            run_recipe("cpt", *words)

    @pytest.mark.parametrize("field", ["refresh", "decision_cache"])
    def test_generations_have_their_own_swap_and_journal(self, files, tmp_path, field):
        value = "epoch" if field == "refresh" else "true"
        words = options(**base(files, output_dir=tmp_path, **{field: value}))
        with pytest.raises(SystemExit, match=f"{field} is set"):
            run_recipe("self_edit", *words)

    def test_generations_measure_one_set(self, files, tmp_path):
        held_out = {"a": files.docs, "b": files.docs}
        words = options(**base(files, output_dir=tmp_path, held_out=held_out))
        with pytest.raises(SystemExit, match="held_out must be one set"):
            run_recipe("self_edit", *words)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--edit_threshold", "99"], "threshold must lie strictly between 0 and 1, got 99.0"),
            (["--compare_policies", "papper"], "policy must be one of paper"),
            (["--compare_policies", "paper,topk=3"], "got 'paper,topk=3'"),
            (["--seeds", "1", "1"], "seeds must differ"),
            (["--refresh", "sometimes"], "a positive number of steps, got 'sometimes'"),
            (["--held_out", "[1]"], "held_out must be a mapping"),
            (["--dataset_limit", "0"], "dataset_limit must be a number of rows from 1"),
            (["--config", "nowhere.yaml"], "nowhere.yaml"),
        ],
    )
    def test_bad_arguments_are_named(self, words, message, capsys):
        with pytest.raises(SystemExit) as ended:
            run_recipe("cpt", *words)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err

    def test_an_unknown_key_is_named(self, tmp_path, capsys):
        (tmp_path / "x.yaml").write_text("use_cpu: true\nbf16: false\nlearning_rat: 1\n")
        with pytest.raises(SystemExit):
            run_recipe("cpt", "--config", str(tmp_path / "x.yaml"))
        assert "learning_rat" in capsys.readouterr().err

    def test_conversations_need_a_chat_template(self, files, tmp_path):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = None
        make_llama().save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        words = base(files, dataset_name=files.chat, output_dir=tmp_path)
        words["model_name_or_path"] = words["prior"] = str(tmp_path / "model")
        with pytest.raises(SystemExit, match=r"no chat template; name one by chat_template_path"):
            run_recipe("sft_lora", *options(**words))
        template = tmp_path / "template.jinja"
        template.write_text(make_tokenizer().chat_template)
        run_recipe("sft_lora", *options(**words, chat_template_path=template, max_steps=1))
        assert metrics(tmp_path)["edit"]["scored"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cpt", "self_edit"])
def test_downstream_tasks(recipe, files, tmp_path):
    """Questions of one's own, by lm-evaluation-harness."""
    pytest.importorskip("lm_eval")
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question": f"the quick {i}", "choices": [" fox", " turtle"], "answer": i % 2}
        for i in range(8)
    ]
    questions.write_text("\n".join(json.dumps(row) for row in rows))
    write_choices(tmp_path / "tasks", "own_questions", questions)
    words = options(
        **base(files, output_dir=tmp_path / "out", compare_baseline="true", seeds=[0],
               eval_tasks=["own_questions"], eval_tasks_path=tmp_path / "tasks")
    )  # fmt: skip
    run_recipe(recipe, *words)
    for run in metrics(tmp_path / "out")["runs"]:
        assert run["tasks"]["own_questions"]["acc"] * 8 == pytest.approx(
            round(run["tasks"]["own_questions"]["acc"] * 8)
        )
    assert "own_questions acc" in (tmp_path / "out" / "comparison.md").read_text()


def test_tasks_need_the_harness_before_training(files, tmp_path, monkeypatch):
    """Not after it."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    words = options(**base(files, output_dir=tmp_path, eval_tasks=["piqa"]))
    with pytest.raises(SystemExit, match=r"toedit_collate\[evaluation\]"):
        run_recipe("cpt", *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
class TestScripts:
    """In processes of their own, as a user starts them."""

    @pytest.mark.parametrize("path", TINY, ids=lambda p: p.stem)
    def test_tiny_recipes_run_offline(self, path, tmp_path):
        _start([sys.executable], path, tmp_path)
        found = metrics(tmp_path)
        assert 0 < found["edit"]["changed"] < found["edit"]["selected"]
        assert all(1 < p < 1000 for p in found["held_out"].values())

    @pytest.mark.parametrize("name", ["pretrain", "sft_lora"])
    def test_two_processes_train_as_one(self, name, files, tmp_path):
        """Same tokens in a step, and so the same edits and nearly the same weights."""
        more = {"config_name": files.model} if name == "pretrain" else {"use_peft": "true"}
        words = base(files, held_out={"docs": files.docs}, **more, **STRONG)
        if name == "pretrain":
            del words["model_name_or_path"]
        else:
            words |= {
                "lora_target_modules": "all-linear",
                "prior": "shared",
                "dataset_name": files.chat,
                "lora_dropout": 0,
            }
        words |= {"per_device_train_batch_size": 2, "max_grad_norm": 0}
        one = options(**{**words, "per_device_train_batch_size": 4, "output_dir": tmp_path / "one"})
        two = options(**{**words, "output_dir": tmp_path / "two"})
        script = str(RECIPES / f"{name}.py")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        _run([sys.executable, script, *one])
        _run([*launcher, "--nproc_per_node=2", script, *two])
        alone, together = metrics(tmp_path / "one"), metrics(tmp_path / "two")
        for key in ("tokens", "scored", "selected", "changed"):
            assert alone["edit"][key] == together["edit"][key] > 0
        for key, value in alone["held_out"].items():
            assert together["held_out"][key] == pytest.approx(value, rel=1e-3)
        for key, tensor in weights(tmp_path / "one").items():
            torch.testing.assert_close(weights(tmp_path / "two")[key], tensor, rtol=1e-2, atol=1e-4)

    def test_zero3(self, files, tmp_path):
        """Held-out sets are scored by the whole weights that were saved."""
        found, plain = self.under_zero3(files, tmp_path)
        wanted = math.log(plain["held_out"]["docs"])
        assert math.log(found["held_out"]["docs"]) == pytest.approx(wanted, rel=1e-3)

    @staticmethod
    def under_zero3(files, tmp_path):
        """What a run under ZeRO-3 measured, and what the same run without it did."""
        pytest.importorskip("deepspeed")
        settings = {
            "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": 1,
            "zero_allow_untested_optimizer": True,
        }
        (tmp_path / "zero3.json").write_text(json.dumps(settings))
        words = base(files, held_out={"docs": files.docs}, optim="adamw_torch", **STRONG)
        words |= {"per_device_train_batch_size": 2, "max_grad_norm": 0, "learning_rate": 1e-4}
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start = [*launcher, "--nproc_per_node=2", str(RECIPES / "cpt.py")]
        out, plain = tmp_path / "out", tmp_path / "plain"
        _run([*start, *options(**words, output_dir=plain)])
        _run([*start, *options(**words, output_dir=out, deepspeed=tmp_path / "zero3.json")])
        assert metrics(out)["edit"]["changed"] == metrics(plain)["edit"]["changed"] > 0
        return metrics(out), metrics(plain)


def _start(launcher: list[str], path: pathlib.Path, folder: pathlib.Path) -> None:
    script = RECIPES / f"{script_of(path)}.py"
    _run([*launcher, str(script), "--config", str(path), "--output_dir", str(folder)])


def _run(command: list[str]) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env["DS_ACCELERATOR"] = "cpu"
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


class TestFirstSteps:
    """What a stranger meets first."""

    @pytest.mark.parametrize("name", SCRIPTS)
    def test_help_names_every_field(self, name, capsys):
        with pytest.raises(SystemExit) as ended:
            run_recipe(name, "--help")
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        assert {"--edit_threshold", "--held_out", "train[:90%]"} <= set(
            re.findall(r"--\w+|train\[:90%\]", printed)
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("learning_rat: 1\n", "'learning_rat' is not a field; did you mean lea"),
            ("a: 1\nb: [1\nc: 2\n", r"x.yaml, line 3, column 2: is not YAML"),
            ("- 1\n", "x.yaml: must be a mapping"),
        ],
    )
    def test_a_config_that_is_wrong(self, tmp_path, capsys, text, message):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(SystemExit) as ended:
            run_recipe("cpt", "--config", str(tmp_path / "x.yaml"))
        assert ended.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("cpt.py: error: ") or "error: " in error
        assert message in error

    def test_the_prior_is_looked_for_before_a_model_is_loaded(self, files, tmp_path, monkeypatch):
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", pytest.fail)
        words = options(**base(files, output_dir=tmp_path, prior="./nowhere"))
        with pytest.raises(SystemExit, match=r"prior '\./nowhere' can't be loaded"):
            run_recipe("cpt", *words)

    def test_a_local_run_s_card_and_data(self, files, tmp_path, capsys):
        """The card has no "None", and the commands that the run prints work."""
        words = base(
            files, output_dir=tmp_path / "out", dataset_name=files.chat, journal="true",
            edit_policy="reference_code", **STRONG,
        )  # fmt: skip
        run_recipe("cpt", *options(**words))
        out = tmp_path / "out"
        card = (out / "README.md").read_text()
        assert "# Model Card for out\n" in card
        assert f'model="{out}"' in card
        assert "None](" not in card
        assert "huggingface.co/datasets" not in card
        config = yaml.safe_load((out / "config.yaml").read_text())
        assert config["edit_policy"] == "reference_code"
        printed = [line.split() for line in capsys.readouterr().out.splitlines()]
        inspect, export = [line[1:] for line in printed if line[:1] == ["toedit"]]
        assert main([*inspect, "--html", str(tmp_path / "edits.html")]) == 0
        assert "generation 1" in (tmp_path / "edits.html").read_text()
        assert main([*export[:-1], str(tmp_path / "edited.jsonl")]) == 0
        rows = [json.loads(line) for line in (tmp_path / "edited.jsonl").read_text().splitlines()]
        assert len(rows) == len(pathlib.Path(files.chat).read_text().splitlines())


@pytest.fixture(scope="module")
def same_data(files, tmp_path_factory):
    """The same documents in all formats."""
    folder = tmp_path_factory.mktemp("same")
    rows = [json.loads(line) for line in pathlib.Path(files.docs).read_text().splitlines()]
    # Before Python 3.11 a .csv can't hold "\0".
    rows = [{"text": " ".join(row["text"].replace("\0", "").split())} for row in rows]
    dataset = Dataset.from_list(rows)
    (folder / "docs.txt").write_text("\n\n".join(row["text"] for row in rows))
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset.to_csv(folder / "docs.csv")
    dataset.to_parquet(folder / "docs.parquet")
    dataset.save_to_disk(folder / "folder")
    for name in ("chat", "messages"):
        (folder / f"{name}.jsonl").write_text(pathlib.Path(getattr(files, name)).read_text())
    return folder


BFD_SPLIT = {"packing": "true", "packing_strategy": "bfd_split", "max_length": 16}


class TestAppliedCaches:
    """What `toedit apply` decided about a file, a recipe finds when it trains on that file."""

    @pytest.mark.parametrize(
        ("name", "script", "more"),
        [
            ("docs.txt", "pretrain", BFD_SPLIT),
            ("docs.jsonl", "cpt", {}),
            ("docs.csv", "cpt", {"packing": "true", "max_length": 16}),  # truncated
            ("docs.parquet", "cpt", {}),
            pytest.param("docs.txt", "cpt", {}, marks=pytest.mark.slow),
            pytest.param("folder", "cpt", {}, marks=pytest.mark.slow),
            pytest.param("*.csv", "cpt", BFD_SPLIT, marks=pytest.mark.slow),
            pytest.param("chat.jsonl", "cpt", {}, marks=pytest.mark.slow),
            ("messages.jsonl", "cpt", {"assistant_only_loss": "true"}),
        ],
    )
    def test_a_recipe_needs_no_pass(
        self, files, same_data, tmp_path, capsys, no_bars, name, script, more
    ):
        cache, source = tmp_path / "cache", str(same_data / name)
        words = ["--policy", "threshold=0.3 exclude_original=true", "--cache", str(cache)]
        words += ["--max-length", str(more.get("max_length", 64))]
        words += ["--assistant-only-loss"] if "assistant_only_loss" in more else []
        assert main(["apply", "--prior", files.model, "--data", source, *words]) == 0
        before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
        assert before
        values = base(
            files, **STRONG, dataset_name=source, output_dir=tmp_path / "out",
            decision_cache=cache, **more,
        )  # fmt: skip
        if script == "pretrain":
            values["config_name"] = values.pop("model_name_or_path")
        run_recipe(script, *options(**values))
        run = metrics(tmp_path / "out")
        assert run["edit"]["changed"] > 0
        assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before
