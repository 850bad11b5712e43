"""Tasks of lm-evaluation-harness on models in memory; run by torchrun, too."""

from __future__ import annotations

import copy
import json
import math
import pathlib
import random
import sys

import launch
import numpy as np
import pytest
import torch
from common.harness import evaluate_tasks, flatten_results
from conftest import TEXT, make_llama, make_tokenizer
from peft import get_peft_model
from running import write_choices
from trainees import lora, move_adapters
from transformers import AutoModelForCausalLM

from toedit_collate.errors import UnusableError

WORDS = TEXT.split()
METRICS = {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}


def make_questions(num: int = 60) -> list[dict]:
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
TEXTS = [" ".join(WORDS[k : k + 9 + k]) for k in range(6)]


def write_lines(file: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_tasks(folder: pathlib.Path) -> pathlib.Path:
    """Two tasks: questions, and the perplexity of texts."""
    tasks = folder / "tasks"
    write_choices(tasks, "local_qa", write_lines(folder / "qa.jsonl", QUESTIONS))
    texts = write_lines(folder / "texts.jsonl", [{"text": text} for text in TEXTS])
    config = {
        "task": "local_texts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(texts)}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    }
    (tasks / "texts.yaml").write_text(json.dumps(config))
    return tasks


def log_likelihood(model, tokenizer, context: list[int], continuation: str) -> float:
    """Slow and obvious: one text, one token at a time, in float64."""
    ids, total = list(context), 0.0
    for token in tokenizer(continuation)["input_ids"]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[token])
        ids.append(token)
    return total


def expected(model, tokenizer) -> dict[str, dict[str, float]]:
    """What the two tasks give, computed without the harness."""
    correct: dict[str, list[bool]] = {"acc": [], "acc_norm": []}
    for row in QUESTIONS:
        context = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
        scores = [log_likelihood(model, tokenizer, context, f" {c}") for c in row["choices"]]
        per_byte = [s / len(c.encode()) for s, c in zip(scores, row["choices"], strict=True)]
        correct["acc"].append(max(range(3), key=scores.__getitem__) == row["answer"])
        correct["acc_norm"].append(max(range(3), key=per_byte.__getitem__) == row["answer"])
    qa = {}
    for name, hits in correct.items():
        share = sum(hits) / len(hits)
        qa[name] = share
        qa[f"{name}_stderr"] = math.sqrt(share * (1 - share) / (len(hits) - 1))
    total = sum(log_likelihood(model, tokenizer, [tokenizer.bos_token_id], t) for t in TEXTS)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    num_words = sum(len(text.split()) for text in TEXTS)
    return {
        "local_qa": qa,
        "local_texts": {
            "word_perplexity": math.exp(-total / num_words),
            "bits_per_byte": -total / num_bytes / math.log(2),
        },
    }


def make_model(kind: str, folder: pathlib.Path):
    make_llama(tie_word_embeddings=kind == "tied").save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if kind == "tied":
        # The adapters have embeddings of their own, and the head keeps the old ones.
        model = get_peft_model(model, lora(modules_to_save=["embed_tokens"])).eval()
        with torch.no_grad():
            model.get_input_embeddings().weight.normal_(std=0.3)
    if kind == "peft":
        return move_adapters(get_peft_model(model, lora())).eval()
    return torch.compile(model, backend="eager") if kind == "compiled" else model


def random_states() -> list:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return [random.getstate(), numpy_state[1].tolist(), torch.get_rng_state().tolist()]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return write_tasks(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "peft", "tied", "compiled"])
def test_as_computed_without_the_harness(tmp_path, tasks, tokenizer, kind):
    model = make_model(kind, tmp_path / "model")
    found = evaluate_tasks(model, tokenizer, [], tasks_path=tasks, batch_size=5)
    wanted = expected(model, tokenizer)
    assert {task: set(metrics) for task, metrics in found.items()} == {
        "local_qa": METRICS,
        "local_texts": {"word_perplexity", "bits_per_byte"},
    }
    for task, metrics in wanted.items():
        assert found[task] == pytest.approx(metrics, rel=1e-4)
    # So that neither "all wrong" nor "the base of the adapters" would pass.
    assert 0 < found["local_qa"]["acc"] != found["local_qa"]["acc_norm"] < 1


@pytest.mark.slow
def test_adapters_that_were_left_out_would_be_seen(tmp_path, tasks, tokenizer):
    """The figures of the model with its adapters above are not those of their base."""
    model = make_model("peft", tmp_path / "model")
    wanted = expected(model, tokenizer)
    with model.disable_adapter():
        base = expected(model, tokenizer)
    assert base["local_qa"]["acc"] != wanted["local_qa"]["acc"]
    assert base["local_texts"] != pytest.approx(wanted["local_texts"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "peft", "tied"])
def test_leaves_all_as_it_was(tmp_path, tasks, kind):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    model = make_model(kind, tmp_path / "model").train()
    model.get_input_embeddings().eval()
    model.config.use_cache = False

    def state() -> dict:
        return {
            "modes": [module.training for module in model.modules()],
            "parameters": {n: (id(p), p.requires_grad) for n, p in model.named_parameters()},
            "values": {n: p.tolist() for n, p in model.state_dict().items()},
            "use_cache": model.config.use_cache,
            "attributes": sorted(vars(model)),
            "pad": (tokenizer.pad_token, len(tokenizer), tokenizer.padding_side),
            "random": random_states(),
            "grad": torch.is_grad_enabled(),
        }

    before = state()
    assert set(before["modes"]) == {True, False}
    evaluate_tasks(model, tokenizer, ["local_qa"], tasks_path=tasks, limit=2, seed=3)
    assert state() == before


@pytest.mark.slow
def test_settings_reach_the_harness(tmp_path, tasks, tokenizer):
    model, prompts = make_llama(), []
    model.register_forward_pre_hook(lambda module, args: prompts.extend(args[0].tolist()))
    few = write_lines(tmp_path / "few.jsonl", QUESTIONS[:4])
    write_choices(tasks, "few", few)
    runs = []
    for seed in (0, 0, 1):
        found = evaluate_tasks(model, tokenizer, "few", tasks_path=tasks, num_fewshot=3, seed=seed)
        runs.append((found, tokenizer.batch_decode(prompts)))
        prompts.clear()
    assert runs[0] == runs[1]
    assert runs[0][1] != runs[2][1]
    for text in runs[0][1]:
        # Each of the four stands once: that which is asked is none of the three examples.
        asked = [part.split("\n")[0] for part in text.split("Question: ")[1:]]
        assert sorted(asked) == sorted(row["question"] for row in QUESTIONS[:4])
    evaluate_tasks(model, tokenizer, ["few"], tasks_path=tasks, limit=1)
    assert len(prompts) == 3
    prompts.clear()
    evaluate_tasks(
        model, tokenizer, ["local_qa"], tasks_path=tasks, limit=1, apply_chat_template=True
    )
    assert "<|im_start|>user" in tokenizer.decode(prompts[0])


@pytest.mark.slow
def test_unknown_tasks_are_named(tasks, tokenizer):
    model = make_llama()
    message = r"no task 'local_qo', 'nosuch_\*'.*lm-eval ls tasks.*mend the YAML files in .*tasks'"
    with pytest.raises(UnusableError, match=message):
        evaluate_tasks(model, tokenizer, ["local_qo", "local_qa", "nosuch_*"], tasks_path=tasks)
    with pytest.raises(UnusableError, match=r"no task 'local_qa'.*tasks_path"):
        evaluate_tasks(model, tokenizer, ["local_qa"])
    empty = tasks / "none"
    empty.mkdir()
    with pytest.raises(UnusableError, match=r"tasks_path has no task.*none.*task: NAME"):
        evaluate_tasks(model, tokenizer, [], tasks_path=empty)


@pytest.mark.slow
def test_two_ranks(tmp_path, tasks):
    launch.run_on_two_ranks(sys.modules[__name__], tmp_path, "rank-1.json")
    zero, one = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert zero["found"] == one["found"]
    assert set(zero["found"]) == {"local_qa", "local_texts"}
    tokenizer = make_tokenizer()
    wanted = expected(make_llama(), tokenizer)
    for task, metrics in wanted.items():
        assert zero["found"][task] == pytest.approx(metrics, rel=1e-4)
    assert zero["passes"] > one["passes"] == 0
    assert "nosuch" in zero["unknown"]
    assert not zero["unknown"].startswith("the evaluation failed")
    assert one["unknown"] == f"the evaluation failed on rank 0: {zero['unknown']}"
    for rank in (zero, one):
        assert "FSDP" in rank["sharded"]


def main(folder: pathlib.Path) -> None:
    """What each of two ranks does."""
    import datasets
    from accelerate import PartialState
    from torch.distributed.fsdp import fully_shard

    datasets.config.HF_DATASETS_CACHE = str(folder / "cache")
    rank = PartialState(cpu=True).process_index
    tokenizer, tasks, passes = make_tokenizer(), folder / "tasks", []
    model = make_llama()
    model.register_forward_pre_hook(lambda *args: passes.append(1))
    replica = torch.nn.parallel.DistributedDataParallel(model)
    result = {"found": evaluate_tasks(replica, tokenizer, [], tasks_path=tasks)}
    result["passes"] = len(passes)
    for name, of, task in (
        ("unknown", replica, "nosuch"),
        ("sharded", fully_shard(make_llama()), "local_qa"),
    ):
        try:
            evaluate_tasks(of, tokenizer, [task], tasks_path=tasks)
        except UnusableError as error:
            result[name] = str(error)
    (folder / f"rank-{rank}.json").write_text(json.dumps(result))


class Wrapped(torch.nn.Module):
    pass


Wrapped.__name__ = "FullyShardedDataParallel"


@pytest.mark.parametrize(
    ("spread", "how"),
    [
        (lambda m: setattr(m.lm_head.weight, "ds_id", 0), "DeepSpeed ZeRO-3"),
        (lambda m: m.add_module("wrapped", Wrapped()), "FSDP"),
    ],
)
@pytest.mark.parametrize(("adapters", "saved"), [(False, "=FOLDER,"), (True, "=BASE,peft=FOLDER,")])
def test_weights_spread_over_ranks_are_refused(tmp_path, tokenizer, spread, how, adapters, saved):
    model = make_llama()
    spread(model)
    model = get_peft_model(model, lora()) if adapters else model
    with pytest.raises(UnusableError, match=f"{how} spreads.*save it") as caught:
        evaluate_tasks(
            model, tokenizer, ["a", "b"], tasks_path=tmp_path, num_fewshot=5,
            apply_chat_template=True,
        )  # fmt: skip
    assert str(caught.value).endswith(
        f"lm-eval run --model hf --model_args pretrained{saved}softmax_dtype=float32 --tasks a,b "
        f"--include_path {tmp_path} --num_fewshot 5 --batch_size 8 --seed 0 --apply_chat_template"
    )


@pytest.mark.slow
def test_the_command_in_that_error_is_one(tmp_path, tasks, tokenizer):
    """It gives the numbers that a model in memory gives."""
    import shlex
    import subprocess

    folder = tmp_path / "model"
    model = make_model("plain", folder)
    tokenizer.save_pretrained(folder)
    names = ["local_qa", "local_texts"]
    found = evaluate_tasks(model, tokenizer, names, tasks_path=tasks)
    model.lm_head.weight.ds_id = 0
    with pytest.raises(UnusableError) as caught:
        evaluate_tasks(model, tokenizer, names, tasks_path=tasks)
    command = shlex.split(str(caught.value).split("run afterwards: ")[1])
    command = [word.replace("FOLDER", str(folder)) for word in command]
    assert command[0] == "lm-eval"
    output = ["--device", "cpu", "--output_path", str(tmp_path / "result")]
    subprocess.run(
        [sys.executable, "-m", "lm_eval", *command[1:], *output], check=True, timeout=200
    )
    (file,) = (tmp_path / "result").rglob("results*.json")
    assert flatten_results(json.loads(file.read_text())["results"]) == {
        name: pytest.approx(found[name]) for name in names
    }


def test_without_the_harness(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    message = r'needs lm-evaluation-harness \(.*lm_eval.*\).*install "toedit_collate\[evaluation\]"'
    with pytest.raises(UnusableError, match=message):
        evaluate_tasks(make_llama(), tokenizer, ["hellaswag"])


def test_arguments_are_checked_before_the_harness_is_loaded(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    model = make_llama()
    with pytest.raises(UnusableError, match=r"tasks_path must be a folder.*nosuch"):
        evaluate_tasks(model, tokenizer, [], tasks_path=tmp_path / "nosuch")
    with pytest.raises(UnusableError, match=r"tasks is empty.*lm-eval ls tasks.*tasks_path"):
        evaluate_tasks(model, tokenizer, [])
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UnusableError, match=r"apply_chat_template.*set tokenizer\.chat_template"):
        evaluate_tasks(model, tokenizer, ["a"], apply_chat_template=True)


def test_metrics_by_name():
    results = {
        "qa": {
            "name": "qa", "alias": " - qa", "sample_len": 7, "acc,none": np.float64(0.5),
            "acc_stderr,none": "N/A",
        },
        "gsm8k": {
            "exact_match,strict-match": 0.25, "exact_match,flexible-extract": 1, "acc,none": 0,
        },
        # A metric may be called anything.
        "odd": {"a,b,none": 0.1, "a,b": 0.2, "acc,none,none": 0.3, "acc,none": 0.4},
        "group": {"alias": "group", "name": "group"},
    }  # fmt: skip
    found = flatten_results(results)
    assert found == {
        "qa": {"acc": 0.5},
        "gsm8k": {"exact_match,strict-match": 0.25, "exact_match,flexible-extract": 1, "acc": 0},
        "odd": {"a,b,none": 0.1, "a,b": 0.2, "acc,none,none": 0.3, "acc": 0.4},
    }
    assert {type(value) for metrics in found.values() for value in metrics.values()} == {float}


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
