"""`toedit bench`: what it measures must be what it says; no time is asserted."""

from __future__ import annotations

import json
import re

import pytest
import reference
import torch
from conftest import likely_ids, make_llama, make_tokenizer

from toedit_collate import EditPolicy, Prior
from toedit_collate.commands import bench
from toedit_collate.commands.bench import (
    BACKBONE,
    CACHED,
    DENSE_KL,
    EDIT,
    SOFTMAX,
    Inputs,
    compare,
    dense_kl,
    full_softmax,
    measure_edit,
    measure_training,
    peak_bytes,
    read_inputs,
    training_steps,
)
from toedit_collate.commands.counting import LiveMemory
from toedit_collate.commands.main import main
from toedit_collate.data import open_data

CPU = torch.device("cpu")
HOT = EditPolicy.reference_code(threshold=0.6, temperature=3.0)
"""Selects many tokens of the tiny priors, and changes some."""
ALL_LABELS = EditPolicy(region="all", target="labels", top_k=64)


@pytest.fixture(scope="module")
def padded() -> Inputs:
    """Documents of different lengths, half of each a prompt, of which many tokens are certain."""
    model = make_llama()
    ids = likely_ids(model, 6, 120)
    mask = torch.ones_like(ids)
    for b, length in enumerate((120, 117, 30, 22, 9, 3)):
        mask[b, length:] = 0
    ids[mask == 0] = 2
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :6] = -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return Inputs(Prior(model), [batch], 6, 120)


# What the edit is compared with


def test_the_full_softmax_is_the_definition(padded):
    model, batch = padded.prior.model, padded.batch(0)
    mask = batch["attention_mask"]
    expected = reference.logprob(model, batch["input_ids"], mask)[:, 1:].exp()
    scored = mask[:, 1:] == 1
    found = full_softmax(model, **batch)
    torch.testing.assert_close(found[scored].double(), expected[scored], atol=1e-5, rtol=1e-4)


def test_the_dense_kl_is_of_labelled_tokens_only():
    model = make_llama()
    ids = likely_ids(model, 2, 12)
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[1, 9:], labels[0, :5] = 0, -100
    found, count = 0.0, 0
    for row in range(2):
        n = int(mask[row].sum())
        with torch.no_grad():
            logits = model(input_ids=ids[row : row + 1, :n]).logits[0].double()
        for t in range(1, n):
            if labels[row, t] != -100:
                prior, other = logits[t - 1].softmax(-1), logits[t - 1].flip(-1).softmax(-1)
                found, count = found + float((prior * (prior / other).log()).sum()), count + 1
    assert float(dense_kl(model, ids, mask, labels)) == pytest.approx(found / count, rel=1e-4)


# Any policy


@pytest.mark.parametrize(
    "policy",
    [ALL_LABELS, EditPolicy.reference_code(strategy="filtering"), EditPolicy.distill(8)],
    ids=["all labels", "filtering", "distill"],
)
def test_any_policy_is_measured(padded, policy):
    table = measure_edit(padded, policy, rounds=5)
    rows = {row["name"]: row for row in table["rows"]}
    assert set(rows) >= {BACKBONE, EDIT, SOFTMAX, DENSE_KL}
    assert rows[BACKBONE]["ratio"] == 1
    assert rows[BACKBONE]["extra_mib"] == 0
    assert CACHED in rows or any("No decision cache" in note for note in table["notes"])
    all_logits = padded.batch(0)["input_ids"].numel() * padded.prior.vocab_size * 4 / 2**20
    assert rows[SOFTMAX]["extra_mib"] > all_logits / 2
    if policy.num_draws == 1:  # the draws of a tiny vocabulary take more than its logits
        assert rows[EDIT]["extra_mib"] < all_logits / 2


def test_steps_train_on_edited_tokens(padded):
    given = []
    trainee = make_llama(seed=1).train()
    trainee.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    steps = training_steps(padded, trainee, padded.prior, HOT)
    before = trainee.lm_head.weight.clone()
    passes: list[int] = []
    hook = padded.trunk.register_forward_hook(lambda *_: passes.append(len(given)))
    for step in steps.values():
        step(4)
    hook.remove()
    unedited, edited = given
    assert set(passes) == {1}  # the second step alone
    source = padded.batch(0)["input_ids"]
    assert torch.equal(unedited, source)
    assert not torch.equal(edited, source)
    assert not torch.equal(trainee.lm_head.weight, before)


def test_steps_of_labels_of_many_draws(padded):
    """The draws reach the loss."""
    trainee = make_llama(seed=1).train()
    steps = training_steps(padded, trainee, padded.prior, EditPolicy.distill(8, redraw="never"))
    given = []
    own = trainee.forward
    trainee.forward = lambda **batch: given.append(batch) or own(**batch)
    for step in steps.values():
        step(4)
    assert ["draws" in batch for batch in given] == [False, True]


@pytest.mark.slow
def test_training_leaves_the_prior_as_it_was(padded):
    pytest.importorskip("peft")
    model = padded.prior.model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    table = measure_training(padded, HOT, rounds=5)
    assert [row["name"] for row in table["rows"]] == [
        f"{kind}, {step}"
        for kind in ("LoRA", "all weights")
        for step in ("without editing", "edited")
    ]
    after = model.state_dict()
    assert before.keys() == after.keys()  # no adapters are left
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


# Timing and memory


def test_every_variant_runs_once_a_round_in_another_order():
    order: list[tuple[int, str]] = []
    variants = {name: lambda number, name=name: order.append((number, name)) for name in "abc"}
    times = compare(variants, CPU, rounds=7, seconds=60)
    assert {name: len(seconds) for name, seconds in times.items()} == dict.fromkeys("abc", 7)
    rounds = [[name for n, name in order[6:] if n == number] for number in range(7)]
    assert all(sorted(names) == list("abc") for names in rounds)
    assert len({tuple(names) for names in rounds}) > 3


def test_what_takes_long_is_timed_less_often():
    times = compare({"a": lambda number: None}, CPU, rounds=50, seconds=0.0)
    assert len(times["a"]) == 5


def test_out_of_memory_is_left_out_and_other_errors_are_errors():
    def too_much(number):
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert list(compare({"a": lambda number: None, "b": too_much}, CPU, rounds=5)) == ["a"]
    with pytest.raises(ZeroDivisionError):
        compare({"a": lambda number: 1 / 0}, CPU, rounds=5)


def test_memory_of_storages_that_live_at_once():
    before = torch.zeros(5000)
    with LiveMemory() as memory:
        view = before[:10]  # there before
        assert memory.live == 0
        a = torch.zeros(1000)  # 4000 bytes
        b = a.view(10, 100)[2:]  # the same memory
        assert memory.live == 4000
        del a
        assert memory.live == 4000
        c = b + 1  # 800 elements
        assert memory.live == 7200
        del b, c
        assert memory.live == 0
        view.add_(1)
        torch.zeros(100, dtype=torch.float64)
    assert memory.live == 0
    assert memory.peak == 7200


def test_peaks_of_functions():
    assert peak_bytes(lambda: torch.zeros(1000).double().sum(), CPU) == 4000 + 8000
    x = torch.zeros(1000)
    assert peak_bytes(lambda: x.add_(1), CPU) == 0


# Data


def write_lines(path, *lines):
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_long_texts_are_cut_and_short_rows_padded(tmp_path):
    prior = Prior(make_llama(), make_tokenizer())
    data = write_lines(
        tmp_path / "a.jsonl",
        {"input_ids": list(range(5, 26))}, {"input_ids": [7, 8, 9]}, {"input_ids": [4, 3]},
    )  # fmt: skip
    batches = read_inputs(prior, open_data(data), B=2, T=8, seed=0).batches
    assert len(batches) == 2  # pieces of 8, 8, 3 and 2 tokens; the last 5 of the first are left out
    found = sorted(
        tuple(ids[mask == 1].tolist())
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    )
    assert found == [(4, 3), tuple(range(5, 13)), (7, 8, 9), tuple(range(13, 21))]
    for batch in batches:
        padding = batch["attention_mask"] == 0
        assert (batch["labels"][padding] == -100).all()
        assert (batch["labels"] == batch["input_ids"])[~padding].all()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"input_ids": [5, 6, 7]}], "gives 1 pieces of up to 64 tokens, and a batch takes 8"),
        ([{"input_ids": [5, 6], "labels": [5, -100]}] * 8, "no token has a label other than -100"),
    ],
)
def test_data_that_cannot_be_used(real, tmp_path, lines, message, capsys):
    data = write_lines(tmp_path / "a.jsonl", *lines)
    assert main(["bench", "--prior", real[0], "--data", str(data), "--max-length", "64"]) == 2
    assert message in capsys.readouterr().err


# The command


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A folder with a prior, and a file of text for it."""
    folder = tmp_path_factory.mktemp("bench")
    prior = folder / "prior"
    make_llama().save_pretrained(prior)
    make_tokenizer().save_pretrained(prior)
    text = "the quick brown fox jumps over the lazy dog while a slow green turtle walks " * 8
    data = write_lines(folder / "text.jsonl", *({"text": text[: 40 * n]} for n in range(1, 14)))
    return str(prior), str(data)


def test_a_run_on_a_prior_and_text(real, tmp_path, capsys):
    path = tmp_path / "out.json"
    policy = ["--policy", "region=all target=labels", "--json", str(path)]
    argv = ["--prior", real[0], "--data", real[1], "--batch-size", "3", "--max-length", "48"]
    assert main(["bench", *argv, "--rounds", "5", *policy]) == 0
    printed, record = capsys.readouterr().out, json.loads(path.read_text())
    assert set(record) == {"facts", "edit", "training"}
    for row in (*record["edit"]["rows"], *record["training"]["rows"]):
        assert row["low"] <= row["ratio"] <= row["high"]
        assert f"{row['name']} " in printed
    assert {"command", "device", "dtype", "versions"} <= set(record["facts"])
    assert "processor time" in printed


def test_the_small_model_of_the_demo_is_the_default(real, monkeypatch, capsys):
    monkeypatch.setattr("toedit_collate.config.priors.demo_model", lambda name: real[0])
    argv = ["--batch-size", "2", "--max-length", "32", "--rounds", "1", "--no-training"]
    assert main(["bench", *argv]) == 0
    assert "prior           toedit-demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prior", "x"], r"--prior and --data belong together"),
        (["--data", "x"], r"--prior and --data belong together"),
        (["--policy", "papper"], r"--policy: policy must be one of paper, .*got 'papper'"),
    ],
)
def test_arguments_that_cannot_be_used(argv, message, capsys):
    assert main(["bench", *argv]) == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed, re.DOTALL), printed
    assert printed.startswith("toedit bench: error: ")


def test_a_full_softmax_that_does_not_fit_is_left_out(padded, monkeypatch):
    monkeypatch.setattr(bench, "available_bytes", lambda device: 2**10)
    table = measure_edit(padded, HOT, rounds=1)
    assert {row["name"] for row in table["rows"]} == {BACKBONE, EDIT, CACHED}
    assert any("full softmax is left out" in note for note in table["notes"])
