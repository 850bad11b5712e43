"""recipes/paper/selection.py: what each method keeps, on small texts."""

import json

import numpy as np
import pytest
import torch
from conftest import TEXT, make_llama, make_tokenizer
from paper.selection import density, dsir, highest, main, ngrams_of, rare_first, words_of
from transformers import BertConfig, BertForSequenceClassification

from toedit_collate.data import open_data


def documents(*texts):
    found = [ngrams_of(words_of(text)) for text in texts]
    return lambda: found


def test_dsir_prefers_what_looks_like_the_target():
    target = documents("the cat sat on the mat", "the cat ran to the mat")
    pool = documents("stocks fell by ten per cent", "the cat sat on the mat", "bonds fell by two")
    counts = np.zeros(3)
    for seed in range(50):
        counts += highest(dsir(target, pool, seed), 1)
    assert counts[1] > 45


def test_dsir_draws_by_its_weights():
    """Without Gumbel noise the scores are the log ratios of the two n-gram models."""
    target, pool = documents("a b a"), documents("a b", "c d", "")
    noise = np.random.default_rng(3).gumbel(size=3)
    weights = dsir(target, pool, 3) - noise

    def model(*texts):
        counts = np.ones(10_000)
        for text in texts:
            np.add.at(counts, ngrams_of(words_of(text)), 1)
        return np.log(counts / counts.sum())

    ratio = model("a b a") - model("a b", "c d", "")
    expected = [ratio[ngrams_of(words_of(text))].sum() for text in ("a b", "c d", "")]
    np.testing.assert_allclose(weights, expected)
    assert weights[0] > weights[2] == 0 > weights[1]


def test_density_is_high_among_copies_and_they_are_kept_least():
    copies = ["the same words again and again"] * 8
    alone = ["an owl sings at night", "ten boats cross two lakes"]
    found = density(documents(*copies, *alone), rows=50, buckets=1000)
    assert (found[:8] == found[0]).all()
    assert found[0] >= 0.8
    assert (found[8:] < 0.5).all()
    assert (found[8:] >= 0.1).all()  # its own bucket
    counts = sum(highest(rare_first(found, seed), 2) for seed in range(200))
    assert counts[8:].min() > 2 * counts[:8].max()


def test_a_document_without_a_score_is_never_kept():
    assert highest(np.array([1.0, np.nan, 3.0]), 3).tolist() == [True, False, True]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selection")
    texts = [TEXT[i : i + 60 + i] for i in range(12)]
    rows = [{"text": text, "number": number} for number, text in enumerate(texts)]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "target.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    make_llama().save_pretrained(folder / "prior")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "prior")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=1, max_position_embeddings=512,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder / "classifier")
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder / "classifier")
    return folder


@pytest.mark.parametrize("method", ["dsir", "perplexity", "density", "classifier"])
def test_each_command_writes_rows_to_train_on(folder, capsys, method):
    output = folder / f"{method}.jsonl"
    assert main([
        method, "--pool", str(folder / "pool.jsonl"), "--target", str(folder / "target.jsonl"),
        "--prior", str(folder / "prior"), "--classifier", str(folder / "classifier"),
        "--keep", "5", "--output", str(output), "--figure", str(folder / f"{method}.png"),
    ]) == 0  # fmt: skip
    assert "5 of 12 documents" in capsys.readouterr().out
    kept = [row for batch in open_data(str(output)).batches() for row in batch.rows]
    pool = [json.loads(line) for line in (folder / "pool.jsonl").read_text().splitlines()]
    numbers = [row["number"] for row in kept]
    assert kept == [row for row in pool if row["number"] in numbers]
    assert len(numbers) == 5
    assert (folder / f"{method}.png").stat().st_size > 1000


def test_perplexity_keeps_the_hard_half_or_the_easy_one(folder):
    halves = []
    for number, more in enumerate(([], ["--easy"])):
        output = folder / f"half{number}.jsonl"
        assert main([
            "perplexity", "--pool", str(folder / "pool.jsonl"), "--prior", str(folder / "prior"),
            "--keep", "6", "--output", str(output), *more,
        ]) == 0  # fmt: skip
        halves.append({json.loads(line)["number"] for line in output.read_text().splitlines()})
    assert not halves[0] & halves[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dsir"], "dsir needs --target"),
        (["perplexity"], "perplexity needs --prior"),
        (["classifier", "--classifier", "nowhere"], "--classifier nowhere: can't be loaded"),
    ],
)
def test_refusals(folder, capsys, arguments, message):
    pool = ["--pool", str(folder / "pool.jsonl"), "--keep", "1"]
    assert main([*arguments, *pool, "--output", str(folder / "none.jsonl")]) == 2
    assert message in capsys.readouterr().err
