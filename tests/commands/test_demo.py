"""`toedit demo`: one real run with tiny settings, its parts, and what it refuses."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from argparse import Namespace

import pytest
import torch
from conftest import TEXT, likely_ids, make_llama
from conftest import make_tokenizer as make_test_tokenizer

from toedit_collate import EditPolicy, Prior
from toedit_collate.commands.demo import training
from toedit_collate.commands.demo.training import perplexity, smaller_model, train
from toedit_collate.commands.main import main
from toedit_collate.config import priors
from toedit_collate.config.options import wants_color
from toedit_collate.data import Preparation, examples
from toedit_collate.data.demo_model import make_tokenizer, orthogonalize
from toedit_collate.data.demo_text import python_topics
from toedit_collate.inspection.reading import as_data

LABELS = EditPolicy.distill(redraw="never")


@pytest.fixture(scope="module")
def prior_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    make_llama().save_pretrained(folder)
    make_test_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """17 documents that the prior finds probable, and one of text."""
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    rows = [{"input_ids": ids.tolist()} for ids in likely_ids(make_llama(), 17, 40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": TEXT}]))
    return path


def run(capsys, *argv):
    capsys.readouterr()
    status = main(["demo", *map(str, argv)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


# --- the whole run ---


def test_it_compares_training_with_and_without_edits(capsys, monkeypatch, prior_folder, data):
    monkeypatch.setattr(training, "EVALUATE_EVERY", 2)
    status, printed, errors = run(
        capsys, "--prior", prior_folder, "--data", data, "--steps", 3, "--seconds", 1e6,
    )  # fmt: skip
    assert status == 0, errors
    places = [printed.index(f"\n{n}. ") for n in range(1, 5)]
    assert places == sorted(places)
    assert re.search(r"\d+ documents to train on, \d+ held out", " ".join(printed.split()))
    rows = re.findall(r"^(\d) +([\d.]+) +([\d.]+) +([\d.]+)$", printed, re.MULTILINE)
    assert [(row[0], row[1]) for row in rows] == [("0", "0.0"), ("2", "1.0"), ("3", "1.5")]
    assert rows[0][2] == rows[0][3]  # the same model
    assert rows[2][2] != rows[2][3]
    assert re.search(r"^reference_code +[\d,]+ +[\d,]+ ", printed, re.MULTILINE)
    assert "\33[" not in printed  # not a terminal
    assert "warn" not in errors.lower()


def test_where_time_is_short_it_says_what_it_left_out(capsys, prior_folder, data):
    status, printed, errors = run(
        capsys, "--prior", prior_folder, "--data", data, "--seconds", 1e-3, "--color", "always"
    )
    assert status == 0, errors
    assert "below are of 16 documents: " in " ".join(printed.split())
    assert "1 of 120 steps fit into the time" in printed
    assert "too few to compare" in printed
    assert "\33[1m4. The edits of the paper\33[0m" in printed


def test_the_small_model_and_its_text_are_the_default(capsys, monkeypatch, prior_folder):
    monkeypatch.setattr(priors, "demo_model", lambda name: prior_folder)
    status, printed, errors = run(capsys, "--seconds", 1e-3)
    assert status == 0, errors
    assert "Prior: toedit-demo, a small model" in printed
    assert re.search(r"help topics of Python; [\d,]+ documents to train on, 40 held out", printed)


@pytest.mark.slow
def test_the_default_run(capsys):
    assert main(["demo"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"┃ [\d.]+ % lower with edits", printed)


# --- its parts ---


def test_the_smaller_model_has_the_first_layers_and_the_last():
    prior = Prior(make_llama(num_hidden_layers=5), make_test_tokenizer())
    small, whole = (dict(m.named_parameters()) for m in (smaller_model(prior), prior.model))
    names = {name for name in small if ".layers." in name}
    assert {name.split(".layers.")[1][0] for name in names} == {"0", "1"}
    for name in names:
        source = name.replace(".layers.1.", ".layers.4.")
        assert torch.equal(small[name], whole[source])
        assert small[name].requires_grad > whole[source].requires_grad
    assert smaller_model(prior).config.num_hidden_layers == 2 < prior.model.config.num_hidden_layers


def test_training_leaves_the_prior_as_it_was():
    prior = Prior(make_llama(), make_test_tokenizer())
    before = {name: tensor.clone() for name, tensor in prior.model.state_dict().items()}
    rows = [{"input_ids": ids.tolist()} for ids in likely_ids(make_llama(), 4, 12)]
    documents = list(examples(as_data(rows), prior.tokenizer, Preparation()))
    made = train(prior, documents[:3], documents[3:], LABELS, steps=2, seed=0, deadline=math.inf)
    assert list(made) == [0, 2]
    after = prior.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(p.requires_grad for p in prior.model.parameters())


def test_perplexity_is_per_label():
    model = make_llama()
    ids, labels = [5, 6, 7, 8], [-100, -100, 7, 8]
    logprob = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    losses = [-logprob[1, 7].item(), -logprob[2, 8].item()]
    assert perplexity(model, [(ids, labels), ([5, 6], [-100, -100])]) == pytest.approx(
        math.exp(sum(losses) / 2), rel=1e-5
    )


@pytest.mark.parametrize(
    ("choice", "terminal", "no_color", "expected"),
    [
        ("auto", True, "", True),
        ("auto", True, "1", False),
        ("auto", False, "", False),
        ("always", False, "1", True),
        ("never", True, "", False),
    ],
)
def test_color_is_for_terminals_and_the_willing(monkeypatch, choice, terminal, no_color, expected):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("NO_COLOR", no_color)
    assert wants_color(Namespace(color=choice)) is expected


@pytest.mark.parametrize("shape", [(64, 64), (64, 160), (160, 64)])
def test_orthogonalize_keeps_directions_and_levels_sizes(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, before, vh = torch.linalg.svd(matrix, full_matrices=False)
    levelled = u.T @ orthogonalize(matrix) @ vh.T
    sizes = levelled.diagonal()
    assert before.max() / before.min() > 2
    assert sizes[before > 0.1 * before.max()].min() > 0.5
    assert sizes.max() < 1.4
    assert (levelled - sizes.diag()).abs().max() < 1e-3


def test_the_made_tokenizer_gives_the_text_back():
    tokenizer = make_tokenizer(["the quick brown fox\n    jumps"])
    ids = tokenizer("the fox\n  é")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == "the fox\n  é"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "user:\nhi<|eos|>\n"


def test_nothing_held_out_of_the_built_in_text_is_trained_on():
    train_texts, held_out = python_topics()
    parts = [
        {paragraph for text in texts for paragraph in text.split("\n\n")}
        for texts in (train_texts, held_out)
    ]
    assert len(parts[0]) > 1000
    assert len(parts[1]) > 50
    assert not parts[0] & parts[1]


# --- what the command says of mistakes ---


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "x.txt"], r"--data x\.txt requires --prior; name a model"),
        (["--prior", "./no-such"], r"--prior \./no-such: can't be loaded .*name a folder"),
        (["--policy", "papper"], r"--policy: policy must be one of paper, .*got 'papper'"),
    ],
)
def test_one_line_and_status_2(capsys, argv, message):
    status, _, errors = run(capsys, *argv)
    assert status == 2
    assert re.match(r"toedit demo: error: .*" + message, errors.strip().splitlines()[-1])


@pytest.mark.parametrize("argv", [["--seconds", "0"], ["--steps", "x"], ["--seed", "-1"]])
def test_numbers_out_of_range_are_refused_by_argparse(capsys, argv):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", *argv])
    assert re.search(rf"{argv[0]}: must be .*{argv[1]}", capsys.readouterr().err)


def test_one_document_is_not_enough(tmp_path, capsys, prior_folder):
    (tmp_path / "one.txt").write_text("one document")
    status, _, errors = run(capsys, "--prior", prior_folder, "--data", tmp_path / "one.txt")
    assert status == 2
    assert "requires 2 documents or more, got 1" in errors


def test_messages_need_a_chat_template(tmp_path, capsys):
    tokenizer = make_test_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "prior")
    make_llama().save_pretrained(tmp_path / "prior")
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "chat.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    status, _, errors = run(
        capsys, "--prior", tmp_path / "prior", "--data", tmp_path / "chat.jsonl"
    )
    assert status == 2
    assert "chat template" in errors
