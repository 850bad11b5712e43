"""Tasks of lm-evaluation-harness on what a Trainer has trained."""

from __future__ import annotations

import json
import math
import pathlib
import random
import sys
import time
from types import SimpleNamespace

import launch
import pytest
import torch
from common import tasks as tasks_module
from common.arguments import RunArguments
from common.tasks import check_evaluation, check_tasks, evaluate_saved, flatten_results, run_tasks
from conftest import TEXT, VOCAB_SIZE, make_llama, make_tokenizer
from peft import get_peft_model
from running import write_choices
from trainees import lora, move_adapters
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from toedit_collate.errors import UnusableError

WORDS = TEXT.split()
SETTINGS = {
    "tasks": ["local_qa"], "num_fewshot": None, "limit": None, "batch_size": 5,
    "apply_chat_template": False, "seed": 0,
}  # fmt: skip


def make_questions(num: int = 30) -> list[dict]:
    draws = random.Random(0)
    return [
        {
            "question": " ".join(draws.choices(WORDS, k=draws.randint(3, 9))),
            # Of different lengths, so that acc and acc_norm differ.
            "choices": [" ".join(draws.choices(WORDS, k=k)) for k in draws.sample((1, 2, 3), 3)],
            "answer": draws.randrange(3),
        }
        for _ in range(num)
    ]


QUESTIONS = make_questions()


def write_tasks(folder: pathlib.Path, num: int = 30) -> pathlib.Path:
    questions = folder / "qa.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS[:num]))
    write_choices(folder / "tasks", "local_qa", questions)
    return folder / "tasks"


def log_likelihood(model, tokenizer, context: list[int], continuation: str) -> float:
    """Slow and obvious: one text, one token at a time, in float64."""
    ids, total = list(context), 0.0
    for token in tokenizer(continuation)["input_ids"]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[token])
        ids.append(token)
    return total


def expected(model, tokenizer) -> dict[str, float]:
    """What the task gives, computed without the harness."""
    correct: dict[str, list[bool]] = {"acc": [], "acc_norm": []}
    for row in QUESTIONS:
        context = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
        scores = [log_likelihood(model, tokenizer, context, f" {c}") for c in row["choices"]]
        per_byte = [s / len(c.encode()) for s, c in zip(scores, row["choices"], strict=True)]
        correct["acc"].append(max(range(3), key=scores.__getitem__) == row["answer"])
        correct["acc_norm"].append(max(range(3), key=per_byte.__getitem__) == row["answer"])
    found = {}
    for name, hits in correct.items():
        share = sum(hits) / len(hits)
        found |= {name: share, f"{name}_stderr": math.sqrt(share * (1 - share) / (len(hits) - 1))}
    return found


def trainer_of(model, folder, tokenizer=None, **more):
    args = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], per_device_eval_batch_size=5, **more
    )
    return Trainer(model, args, processing_class=tokenizer or make_tokenizer())


def asking(tasks, **more):
    return RunArguments(eval_tasks=["local_qa"], eval_tasks_path=str(tasks), **more)


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return write_tasks(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "adapters"])
def test_as_computed_without_the_harness(tmp_path, tasks, kind):
    tokenizer = make_tokenizer()
    # Where it loads adapters, the harness drops ids that the tokenizer does not have.
    base = make_llama(vocab_size=len(tokenizer) if kind == "adapters" else VOCAB_SIZE)
    base.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    if kind == "adapters":
        model = move_adapters(get_peft_model(model, lora())).eval()
    trainer = trainer_of(model, tmp_path / "out", tokenizer)
    trainer.save_model()
    wanted = expected(model, tokenizer)
    assert 0 < wanted["acc"] != wanted["acc_norm"] < 1
    assert run_tasks(trainer, asking(tasks))["local_qa"] == pytest.approx(wanted, rel=1e-4)
    if kind == "adapters":
        with model.disable_adapter():
            assert expected(model, tokenizer) != wanted


def test_settings_reach_the_harness(tmp_path, tasks, monkeypatch):
    asked = []
    monkeypatch.setattr(tasks_module, "evaluate_saved", lambda *a, **k: asked.append((a, k)) or {})
    trainer = trainer_of(make_llama(), tmp_path / "out")
    run_tasks(trainer, asking(tasks, eval_limit=3, eval_num_fewshot=2))
    ((folder, settings), named) = asked[0]
    assert (folder, named) == (str(tmp_path / "out"), {"device": "cpu", "base": None})
    assert {**SETTINGS, "include_path": str(tasks), "limit": 3, "num_fewshot": 2, "seed": 42} == (
        settings
    )


def test_the_commands(monkeypatch):
    """Settings become options; the process is not one of several ranks."""

    def run(words, check, env):
        assert not {"RANK", "ACCELERATE_USE_FSDP"} & set(env)
        asked.append(" ".join(words))
        results = {"results": {asked[-1].split("--tasks ")[1].split()[0]: {"acc,none": 0.5}}}
        (pathlib.Path(words[-1]) / "results_1.json").write_text(json.dumps(results))

    asked: list[str] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "1")
    monkeypatch.setattr(tasks_module.subprocess, "run", run)
    settings = {**SETTINGS, "tasks": ["a", "adaptllm_ner", "b"], "apply_chat_template": True}
    found = evaluate_saved("out", settings, device="cpu", base="llama")
    assert found == {"adaptllm_ner": {"acc": 0.5}, "a,b": {"acc": 0.5}}
    domain, others = asked
    assert "lm_eval run --tasks a,b --batch_size 5 --apply_chat_template --seed 0 --dev" in others
    model = "pretrained=llama,tokenizer=out,softmax_dtype=float32,peft=out"
    assert f"--model_args {model} --output_path" in others
    assert f"--model_args {model},add_bos_token=False --output_path" in domain


@pytest.mark.slow
def test_unknown_tasks_are_named_before_a_model_is_loaded(tmp_path, tasks):
    known = RunArguments(eval_tasks=["local_qo", "local_qa", "nosuch_*"])
    known.eval_tasks_path = str(tasks)
    with pytest.raises(UnusableError, match=r"no task local_qo, nosuch_\* in .*lm-eval ls tasks"):
        check_tasks(known)
    (tmp_path / "none").mkdir()
    with pytest.raises(UnusableError, match=r"no task at all.*none.*task: NAME"):
        check_tasks(RunArguments(eval_tasks_path=str(tmp_path / "none")))
    check_tasks(RunArguments(eval_tasks_path=str(tasks)))


def test_data_that_cannot_be_loaded_is_named_before_training(tmp_path, tasks):
    (tmp_path / "qa.jsonl").unlink()
    with pytest.raises(UnusableError, match=r"eval_tasks: local_qa can't be loaded: .*hf auth"):
        check_tasks(asking(tasks))


@pytest.mark.slow
def test_two_ranks(tmp_path, tasks):
    """The main process has the saved model evaluated, and the other one waits."""
    launch.run_on_two_ranks(sys.modules[__name__], tmp_path, "rank-1.json")
    zero, one = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert zero["found"]["local_qa"] == pytest.approx(expected(make_llama(), make_tokenizer()))
    assert one["found"] == {}
    assert one["waited"] > 0.5 * zero["waited"]


def main(folder: pathlib.Path) -> None:
    """What each of two ranks does."""
    trainer = trainer_of(make_llama(), folder / "out")
    trainer.save_model()
    started = time.perf_counter()
    found = run_tasks(trainer, asking(folder / "tasks"))
    result = {"found": found, "waited": time.perf_counter() - started}
    (folder / f"rank-{trainer.args.process_index}.json").write_text(json.dumps(result))


def test_without_the_harness(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UnusableError, match=r'install "toedit_collate\[evaluation\]"'):
        check_tasks(RunArguments(eval_tasks=["hellaswag"]))
    with pytest.raises(UnusableError, match=r"eval_tasks_path must be a folder.*nosuch"):
        check_tasks(RunArguments(eval_tasks_path="nosuch"))
    check_tasks(RunArguments())


@pytest.mark.parametrize("field", ["tasks", "held_out", None])
@pytest.mark.parametrize("saves", [True, False])
def test_what_zero3_would_not_save_whole_is_refused_before_training(field, saves):
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": saves}
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": zero})
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)),
        processing_class=None,
        eval_dataset={"x": []} if field == "held_out" else None,
    )
    run_args = RunArguments(eval_tasks=["piqa"] if field == "tasks" else None)
    if saves or field is None:
        check_evaluation(trainer, run_args)
    else:
        with pytest.raises(UnusableError, match="set zero3_save_16bit_model: true"):
            check_evaluation(trainer, run_args)


def test_a_chat_template_is_looked_for_before_training(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    run_args = RunArguments(eval_tasks=["piqa"], eval_chat_template=True)
    with pytest.raises(UnusableError, match=r"eval_chat_template.*chat_template_path"):
        check_evaluation(trainer_of(make_llama(), tmp_path, tokenizer), run_args)


def test_metrics_by_name():
    results = {
        "qa": {"name": "qa", "alias": " - qa", "sample_len": 7, "acc,none": 0.5,
               "acc_stderr,none": "N/A"},
        "gsm8k": {"exact_match,strict-match": 0.25, "exact_match,flexible-extract": 1,
                  "acc,none": 0},
        "group": {"alias": "group", "name": "group"},
    }  # fmt: skip
    assert flatten_results(results) == {
        "qa": {"acc": 0.5},
        "gsm8k": {"exact_match,strict-match": 0.25, "exact_match,flexible-extract": 1, "acc": 0},
    }


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
