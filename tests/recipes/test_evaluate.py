"""recipes/paper/evaluate.py: AdaptLLM's tasks, and losses on held-out sets."""

from __future__ import annotations

import json
import math

import pytest
import torch
from common.domain_tasks.adaptllm import (
    chosen,
    entity_f1,
    exact_match,
    load_rows,
    mean_weighted_f1,
)
from common.tasks import DOMAIN_TASKS
from conftest import make_llama, make_tokenizer
from paper.evaluate import HELD_OUT, main, sets_of
from paper.perplexity import FIRST, perplexity
from paper.table import read_tables
from running import make_files, texts_in

from toedit_collate import Prior


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


def test_the_longest_option_wins_by_its_mean(tmp_path, files, monkeypatch):
    """Per token: the sums of the two options order them the other way round."""
    row = {"input": "the quick", "options": ["fox", "lazy dog and the sea"], "gold_index": 1}
    (tmp_path / "MQP.json").write_text(json.dumps(row) + "\n")
    monkeypatch.setenv("ADAPTLLM_DATA", str(tmp_path))
    rows = load_rows("none", "MQP", tokenizer=files.model)["test"]
    (found,) = list(rows)
    assert found["option_tokens"][0] < found["option_tokens"][1]
    assert chosen(found, [(-2.0, False), (-3.0, False)]) == 1
    assert chosen({"option_tokens": [1, 1]}, [(-2.0, False), (-3.0, False)]) == 0
    without = load_rows("none", "MQP")["test"]
    with pytest.raises(ValueError, match="tokenizer=MODEL"):
        chosen(without[0], [(0.0, False)])


@pytest.mark.parametrize(
    ("label", "answer", "right"),
    [
        ("12.5", " 12.505 percent\n3", True),
        ("0.125", "12.5%", True),
        ("-1,200", "from 7 to -1200.0", True),
        ("3", "4\n3", False),
        ("3", "no number", False),
        ("none", "none", False),
    ],
)
def test_numbers_are_compared_with_a_tolerance(label, answer, right):
    assert exact_match({"label": label}, [answer]) == {"exact_match": right}


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Smith (PER), Acme (ORG)", 1.0),
        ("Smith (PER)", 2 / 3),
        ("Smith (LOC), Rome (LOC)", 1 / 4),
        ("nobody", 0.0),
    ],
)
def test_entities_count_by_text_and_type(answer, score):
    found = entity_f1({"label": "Smith (PER), Acme (ORG)"}, [answer])
    assert found["entity_f1"] == pytest.approx(score)


def test_perplexities_are_those_of_the_definition(files):
    model, tokenizer = make_llama(max_position_embeddings=1024), make_tokenizer()
    texts = [*texts_in(files)[:3], "q"]
    texts[0] = texts[0] * 40  # several windows, the last of which lies behind the first 1,024
    losses, means = [], []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        first = []
        for start in range(0, ids.shape[1], 700):
            window = ids[:, start : start + 700]
            with torch.no_grad():
                logits = model(input_ids=window).logits.double().log_softmax(-1)
            own = -logits[0, :-1].gather(-1, window[0, 1:, None])[:, 0]
            losses.append(own)
            first += own[: max(FIRST - start - 1, 0)].tolist()
        means += [sum(first) / len(first)] if first else []
    assert len(tokenizer(texts[0])["input_ids"]) > 1400
    found = perplexity(Prior(model, tokenizer), texts, max_length=700, batch_size=2)
    losses = torch.cat(losses)
    assert found["tokens"] == len(losses)
    assert found["documents"] == len(means) == 3
    assert found["per_token"] == pytest.approx(math.exp(losses.mean()), rel=1e-4)
    assert found["per_document"] == pytest.approx(math.exp(sum(means) / 3), rel=1e-4)


def test_each_table_names_tasks_and_sets_that_exist():
    sets = HELD_OUT.read_text()
    own = {path.stem for path in DOMAIN_TASKS.glob("*.yaml")}
    for number, table in read_tables().items():
        tasks, names = sets_of(table) or ([], [])
        assert all(f"\n{name}: " in sets for name in names), number
        domain = {task for task in tasks if task.startswith("adaptllm")}
        assert {task.removeprefix("adaptllm_") for task in domain} <= own
    assert sets_of(read_tables()["9"]) is None


def test_the_pile_from_a_local_file(files, tmp_path, monkeypatch):
    """Each document goes into the set that it names; a second call adds to the first."""
    monkeypatch.setattr("paper.evaluate.read_tables", lambda: {
        "1": {"measures": ["by_document/pile_arxiv"]},
        "2": {"measures": ["held_out/pile_github"]},
    })  # fmt: skip
    texts = texts_in(files)[:4]
    with open(tmp_path / "pile.jsonl", "w") as out:
        for text, name in zip(texts, ["ArXiv", "Github", "ArXiv", "ArXiv"], strict=True):
            out.write(json.dumps({"text": text, "meta": {"pile_set_name": name}}) + "\n")
    words = [files.model, "--local", str(tmp_path), "--output", str(tmp_path), "--device", "cpu"]
    assert main([*words, "--table", "1", "--limit", "2"]) == 0
    assert main([*words, "--table", "2"]) == 0
    report = json.loads((tmp_path / "evaluation.json").read_text())
    counts = {name: entry["documents"] for name, entry in report["counts"].items()}
    assert counts == {"pile_arxiv": 2, "pile_github": 1}
    expected = perplexity(Prior.from_pretrained(files.model), texts[:3:2], max_length=2048)
    found = report["by_document"]["pile_arxiv"]["perplexity"]
    assert found == pytest.approx(expected["per_document"])


def test_a_hub_id_needs_a_folder_for_its_results(capsys):
    assert main(["someone/model", "--table", "13"]) == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.slow
def test_finance_in_the_harness(files, tmp_path, monkeypatch):
    """The predictions of FPB and Headline, and so their F1, are those of the definition."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    options = ["positive fox", "negative", "neutral turtle dog"]
    rows = [
        {"id": n, "input": f"{text[:40]} is", "options": options, "gold_index": n % 3}
        for n, text in enumerate(texts_in(files)[:9])
    ]
    contents = dict.fromkeys(("FPB", "FiQA_SA"), rows)
    contents["Headline"] = [row | {"class_id": row["id"] % 2} for row in rows]
    for name, label in (("NER", "Smith (PER)"), ("ConvFinQA", "12.5")):
        contents[name] = [{"id": row["id"], "input": row["input"], "label": label} for row in rows]
    for name, content in contents.items():
        lines = "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / f"{name}.json").write_text(lines)
    words = ["--table", "2b", "--local", str(tmp_path), "--output", str(tmp_path)]
    assert main([files.model, *words, "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())["tasks"]
    guesses = [best_option(make_llama(), row) for row in rows]
    items = [(0, row["gold_index"], guess) for row, guess in zip(rows, guesses, strict=True)]
    assert len(set(guesses)) > 1
    assert found["adaptllm_fpb"]["weighted_f1"] == pytest.approx(mean_weighted_f1(items))
    items = [(n % 2, gold, guess) for n, (_, gold, guess) in enumerate(items)]
    assert found["adaptllm_headline"]["weighted_f1"] == pytest.approx(mean_weighted_f1(items))
    assert found["adaptllm_ner"]["entity_f1"] == found["adaptllm_convfinqa"]["exact_match"] == 0


def best_option(model, row) -> int:
    tokenizer, means = make_tokenizer(), []
    start = len(tokenizer(row["input"])["input_ids"])
    for option in row["options"]:
        ids = torch.tensor([tokenizer(f"{row['input']} {option}")["input_ids"]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].double().log_softmax(-1)
        own = logits[:-1].gather(-1, ids[0, 1:, None])[start - 1 :]
        means.append(float(own.mean()))
    return max(range(len(means)), key=means.__getitem__)
