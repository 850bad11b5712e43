"""The whole path of the paper's tables at tiny size: data, training, evaluation, table.

The real configs run, with a tiny model and stand-ins in place of the public data.
"""

from __future__ import annotations

import json

import pytest
from paper import evaluate, make_data, rounds, table
from running import (
    CONFIGS,
    ON_CPU,
    make_files,
    metrics,
    options,
    run_recipe,
    texts_in,
    write_choices,
)

DOMAIN = {"MQP": 2, "PubMedQA": 3, "USMLE": 4, "RCT": 5, "ChemProt": 13}  # task -> options
WORDS = ["fox", "dog", "the lazy turtle", "river", "old stone bridge", "mill", "sea", "ship"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def _caches(tmp_path, monkeypatch, no_bars):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make(files, folder, name, rows):
    """A corpus by make_data.py, from a stand-in of its public source."""
    source = write_lines(folder / f"{name}_source.jsonl", rows)
    words = ["--folder", str(folder), "--source", str(source), "--tokenizer", files.model]
    assert make_data.main([name, *words]) == 0
    return str(folder / f"{name}.jsonl")


def train(files, recipe, config, out, **more):
    words = {
        **ON_CPU, "prior": files.model, "max_length": 64, "max_steps": 2, "global_batch_size": 4,
        "warmup_steps": 1, "output_dir": out, "eval_limit": 4, "edit_threshold": 0.3,
        "per_device_eval_batch_size": 4, **more,
    }  # fmt: skip
    run_recipe(recipe, "--config", str(CONFIGS / f"{config}.yaml"), *options(**words))
    assert metrics(out)["edit"]["scored"] > 0


def choices(folder, *names):
    """Stand-ins of the harness's tasks: multiple choice with the same names."""
    rows = [
        {"question": f"which {a}", "choices": WORDS[:4], "answer": n % 4}
        for n, a in enumerate(WORDS)
    ]
    questions = write_lines(folder / "questions.jsonl", rows)
    for name in names:
        write_choices(folder / "tasks", name, questions)
    return str(folder / "tasks")


def row_of_run(capsys, number, run):
    """Cells of the run's row in the printed table."""
    capsys.readouterr()
    table.main([number, str(run)])
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith(f"| *{run.name}*")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.slow
def test_table_2_biomedicine(files, tmp_path, monkeypatch, capsys):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    texts = texts_in(files)
    entry = {"QA_list": [{"Q": "what", "A": "a fox"}], "inherit_from_prev": False}
    medicine = make(files, tmp_path, "medicine", [[{"context": t, **entry}] for t in texts])
    orca = make(files, tmp_path, "openorca", [{"question": t, "response": t[::-1]} for t in texts])
    for name, num in DOMAIN.items():
        rows = [
            {"id": n, "input": f"{t[:30]} which", "gold_index": n % num,
             "options": [f"{WORDS[o % 8]} {o}" for o in range(num)]}
            for n, t in enumerate(texts[:6])
        ]  # fmt: skip
        write_lines(tmp_path / f"{name}.json", rows)
    monkeypatch.setenv("ADAPTLLM_DATA", str(tmp_path))
    sources = json.dumps([{"name": medicine}, {"name": orca, "edit": False}])
    out = tmp_path / "bio"
    train(files, "cpt", "cpt_olmo_1b_bio", out, model_name_or_path=files.model, datasets=sources)
    assert metrics(out)["edit"]["raw"] > 0 == metrics(out)["edit"]["raw_changed"]
    cells = row_of_run(capsys, "2a", out)
    assert len(cells) == 6
    assert "-" not in cells
    # Perplexities of the same saved model.
    write_lines(tmp_path / "pile.jsonl", [
        {"text": text, "meta": {"pile_set_name": name}}
        for text, name in zip(texts, [s["subset"] for s in pile_sets()], strict=False)
    ])  # fmt: skip
    words = ["--table", "1", "--local", str(tmp_path), "--device", "cpu"]
    assert evaluate.main([str(out), *words]) == 0
    assert "-" not in row_of_run(capsys, "1", out)


def pile_sets():
    import yaml

    entries = yaml.safe_load(evaluate.HELD_OUT.read_text())
    return [entry for name, entry in entries.items() if name.startswith("pile_")]


@pytest.mark.slow
def test_table_3(files, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    dolma = make(files, tmp_path, "dolma", [{"text": text} for text in texts_in(files)])
    names = ["arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa"]
    tasks = choices(tmp_path, *names, "social_iqa", "winogrande")
    out = tmp_path / "table3"
    train(
        files, "pretrain", "pretrain_olmo_1b_table3", out, config_name=files.model,
        dataset_name=dolma, eval_tasks_path=tasks, held_out={"docs": files.docs},
    )  # fmt: skip
    cells = row_of_run(capsys, "3", out)
    assert len(cells) == 9
    assert "-" not in cells


@pytest.mark.slow
def test_table_4_code(files, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    rows = [
        {"problem": f"write {t[:20]}", "solution": t, "lang": "python"} for t in texts_in(files)
    ]
    data = make(files, tmp_path, "oss_instruct", rows)
    names = ["arc_challenge", "gpqa_main_zeroshot", "hendrycks_math", "mmlu"]
    tasks = choices(tmp_path, *names)
    gsm8k = {
        "task": "gsm8k", "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}},
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
        "filter_list": [{"name": "flexible-extract", "filter": [
            {"function": "regex", "regex_pattern": r"(\d+)"}, {"function": "take_first"}]}],
    }  # fmt: skip
    (tmp_path / "tasks" / "gsm8k.yaml").write_text(json.dumps(gsm8k))
    out = tmp_path / "oss"
    train(
        files, "sft_lora", "sft_lora_llama3_8b_oss_instruct", out, model_name_or_path=files.model,
        chat_template_path=files.model, eos_token="<|im_end|>", prior="shared", dtype="float32",
        dataset_name=data, eval_tasks_path=tasks,
    )  # fmt: skip
    cells = row_of_run(capsys, "4b", out)
    assert len(cells) == 5
    assert "-" not in cells


@pytest.mark.slow
def test_table_9(files, tmp_path, capsys):
    """No training: one frozen prior edits the answers three times."""
    rows = [{"definition": "say", "inputs": t[:20], "targets": t} for t in texts_in(files)]
    data = make(files, tmp_path, "natural_instructions", rows)
    words = ["--prior", files.model, "--data", data, "--policy", "reference_code threshold=0.3"]
    assert rounds.main([*words, "--output", str(tmp_path / "rounds.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert all(f"| round {number} |" in printed for number in (1, 2, 3))
