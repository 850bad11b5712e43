"""Developers' benchmarks: their inputs are what they say, and every script runs. No time counts."""

from __future__ import annotations

import argparse
import itertools
import json
import math

import aligned_edit
import edit_parts
import head_work
import plan_table
import pytest
import shapes
import tokenizer_pairs
import torch
from conftest import VOCAB_SIZE, likely_ids, make_llama, make_tokenizer

from toedit_collate import EditPolicy, Prior, edit_tokens
from toedit_collate.head.logprob import exact_logprob

PAPER = EditPolicy.paper()
HOT = EditPolicy.reference_code(threshold=0.6, temperature=3.0)
SMALL = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "vocab_size": 1024, "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}  # fmt: skip


def small_inputs(dtype: torch.dtype = torch.float32):
    """A calibrated batch of 8 x 128 tokens, and its states."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SHAPES, "tiny", SMALL)
        model = shapes.random_model("tiny", torch.device("cpu"), dtype)
    direction = shapes.shape_head(model.get_output_embeddings().weight.detach())
    return shapes.Source(Prior(model), "small", direction=direction).inputs(8, 128)


@pytest.fixture(scope="module")
def small():
    return small_inputs()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The options of a prior and its text."""
    folder = tmp_path_factory.mktemp("real")
    make_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    text = "the quick brown fox jumps over the lazy dog while a slow green turtle walks " * 8
    rows = [json.dumps({"text": text[: 40 * n]}) for n in range(1, 14)]
    (folder / "text.jsonl").write_text("\n".join(rows))
    data = ["--data", str(folder / "text.jsonl"), "--max-length", "48"]
    return ["--prior", str(folder), *data]


# Calibrated inputs


def test_targets_follow_table_8():
    assert sum(share for share, _, _ in shapes.TABLE_8) == pytest.approx(100)
    assert all(high == low for (_, _, high), (_, low, _) in itertools.pairwise(shapes.TABLE_8))
    targets = shapes.table_8_targets(4000, torch.Generator().manual_seed(1))
    for share, low, high in shapes.TABLE_8:
        found = ((targets >= low) & (targets < high)).double().mean()
        assert found == pytest.approx(share / 100, abs=1e-3)
    assert (1 - targets[targets >= 0.99]).mean() == pytest.approx(0.004, abs=0.0005)


def test_calibrated_states_have_the_probabilities_of_table_8(small):
    inputs, states = small
    ids = inputs.batch(0)["input_ids"]
    logits = states[:, :-1] @ inputs.prior.head.weight.T  # the full softmax, in float32
    p = logits.softmax(-1).gather(-1, ids[:, 1:, None]).flatten()
    for share, low, high in shapes.TABLE_8:  # a probability next to a border may fall beyond it
        found = ((p >= low) & (p < high)).double().mean()
        assert found == pytest.approx(share / 100, abs=4e-3), (low, high)


def test_a_row_of_zeros_gets_a_direction_of_its_own():
    """As a padding id has where the head is tied to the embeddings (OLMo)."""
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    weight[[0, 5]] = 0
    g = shapes.shape_head(weight)
    ids, wanted = torch.tensor([0, 5, 7]), torch.tensor([0.02, 0.5, 0.995], dtype=torch.float64)
    states = shapes.calibrated_states(weight, g, ids, wanted, torch.Generator().manual_seed(1))
    p = (states @ weight.T).softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(p.double(), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_edit_selects_12_percent_of_them(dtype):
    inputs, states = small_inputs(dtype)
    with shapes.states_replaced(inputs.prior, states):
        result = edit_tokens(inputs.prior, **inputs.batch(0))
    assert result.selected.sum() / result.scored.sum() == pytest.approx(0.12, abs=0.005)
    without = edit_tokens(inputs.prior, **inputs.batch(0))
    assert not without.selected.any()  # random weights alone are never that certain


def test_prepared_states_are_for_passes_without_gradients_only(small):
    inputs, states = small
    model, batch = inputs.prior.model, inputs.batch(0)
    with shapes.states_replaced(inputs.prior, states):
        with torch.no_grad():
            inside = model.model(input_ids=batch["input_ids"], use_cache=False)[0]
        training = model.model(input_ids=batch["input_ids"], use_cache=False)[0]
        with torch.no_grad(), pytest.raises(RuntimeError, match=r"\(1, 3\).*\(8, 128\)"):
            model.model(input_ids=torch.ones(1, 3, dtype=torch.int64))
    assert torch.equal(inside, states)
    assert not torch.equal(training, inside)


# What they compute


def test_a_trick_that_is_off_changes_no_edit(small):
    inputs, states = small
    with shapes.states_replaced(inputs.prior, states):
        policy = HOT.replace(threshold=0.99)
        expected = edit_tokens(inputs.prior, **inputs.batch(0), policy=policy)
        found = edit_parts.variants(inputs, policy)
        assert {"no early reject", "every selected token drawn"} <= set(found)
        for name, variant in found.items():
            edited = variant(0)["input_ids"]
            assert torch.equal(edited, expected.input_ids) == ("region" not in name), name
    assert expected.changed.any()


def test_a_switch_that_fits_no_more_says_so():
    with (
        pytest.raises(AttributeError, match="no_such_name"),
        edit_parts.swapped(edit_parts.passes, "no_such_name", None),
    ):
        pass


def test_open_positions_are_those_of_a_sum_by_hand(prior):
    ids = likely_ids(prior.model, 2, 20)
    hidden = prior.model.model(input_ids=ids)[0][:, :-1].flatten(0, 1).detach()
    observed = ids[:, 1:].flatten()
    order = head_work.likelihood_order(prior.head, hidden)
    assert ((hidden @ prior.head.weight.T).softmax(-1).mean(0)[order].diff() <= 1e-6).all()
    found = head_work.count_open(prior.head, hidden, observed, order, math.log(0.7))
    logits = (hidden @ prior.head.weight.T).double()
    for size in (1, 16, 100, VOCAB_SIZE):
        count = 0
        for row, y in zip(logits, observed.tolist(), strict=True):
            tile = {*order[:size].tolist(), y}
            count += bool(row[y].exp() / sum(row[j].exp() for j in tile) >= 0.7)
        assert found[size - 1] == count
    selected = exact_logprob(prior.head, hidden, observed) >= math.log(0.7)
    assert 0 < found[-1] == selected.sum() < found[0]


def test_every_token_takes_the_whole_head_once(small):
    inputs, states = small
    with shapes.states_replaced(inputs.prior, states):
        head_work.head_work(inputs, PAPER)  # measures the likely competitors
        selected, work = head_work.head_work(inputs, EditPolicy(region="all", target="labels"))
        assert selected > 0.99
        assert work == pytest.approx(1, rel=0.1)
        assert head_work.head_work(inputs, PAPER)[1] < work / 2


# Every script runs


def test_the_table_of_parts(capsys, monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", SMALL)
    argv = ["--batch-size", "2", "--max-length", "32", "--rounds", "1"]
    shapes.run(edit_parts.make_parser(), edit_parts.measure, ["--plain", *argv])
    shapes.run(edit_parts.make_parser(), edit_parts.measure, ["--training", *argv])
    printed = capsys.readouterr().out
    assert "edit " in printed
    assert "LoRA, edited" in printed


@pytest.mark.parametrize("name", ["agreement", "head_work"])
def test_a_script_with_a_prior_and_text(name, real, capsys):
    module = __import__(name)
    module.main(real)
    printed = capsys.readouterr().out
    wanted = {"agreement": "float32", "head_work": "likeliest ids"}
    assert wanted[name] in printed


def test_an_aligned_prior(real, tmp_path, capsys):
    tokenizer_pairs.make("byte-level").save_pretrained(tmp_path)
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer")
    argv = [*real, "--tokenizer", str(tmp_path), "--batch-size", "2", "--rounds", "1"]
    shapes.run(parser, aligned_edit.measure, argv)
    assert "of which" in capsys.readouterr().out


def test_the_plan_table_reads_cards_from_headers():
    configs = sorted(plan_table.CONFIGS.glob("*.yaml"))
    for path in configs:
        card, sharding = plan_table.place_of(path)
        assert (card == "cpu") == path.stem.endswith("_tiny"), path.stem
        assert sharding.processes in (1, 4, 8)
    row = plan_table.row(plan_table.CONFIGS / "cpt_tiny.yaml")
    assert row.startswith("| `cpt_tiny` | 1 x cpu |")
