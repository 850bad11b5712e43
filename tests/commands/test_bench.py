"""`toedit bench`: what it measures must be what it says; no time is asserted."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import re
import subprocess
import sys
import types

import pytest
import reference
import torch
from conftest import VOCAB_SIZE, likely_ids, make_llama, make_tokenizer

from toedit_collate import EditPolicy, Prior, ToEditCollator, edit_tokens
from toedit_collate.commands.bench import edit, passes, switches, training
from toedit_collate.commands.bench.agreement import measure_agreement
from toedit_collate.commands.bench.head_alone import measure_head
from toedit_collate.commands.bench.libraries import installed_libraries
from toedit_collate.commands.bench.memory import measure_memory
from toedit_collate.commands.bench.plain import plain_edit, soft_targets_loss
from toedit_collate.commands.bench.survivors import (
    count_survivors,
    likelihood_order,
    mean_needing_candidates,
    measure_survivors,
)
from toedit_collate.commands.bench.table import Column, Row, Section, format_section
from toedit_collate.commands.bench.training import measure_training, training_steps
from toedit_collate.commands.main import main
from toedit_collate.commands.measuring import rows, shapes
from toedit_collate.commands.measuring.calibrate import (
    TABLE_8,
    calibrated_states,
    shape_head,
    states_replaced,
    table_8_targets,
)
from toedit_collate.commands.measuring.inputs import Inputs, Source
from toedit_collate.commands.measuring.memory import StorageTracker, peak_bytes
from toedit_collate.commands.measuring.timing import MIN_PAIRS, Quartiles, compare
from toedit_collate.data import open_data
from toedit_collate.head import kernels
from toedit_collate.head.logprob import exact_logprob
from toedit_collate.head.projection import Head

CPU = torch.device("cpu")
PAPER = EditPolicy.paper()
HOT = EditPolicy.reference_code(threshold=0.6, temperature=3.0)
"""Selects many tokens of the tiny priors, and changes some."""
SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 1024,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def small_inputs(B: int = 8, T: int = 128, dtype: torch.dtype = torch.float32) -> Inputs:
    """A calibrated batch of a small shape."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SHAPES, "tiny", SMALL)
        model = shapes.random_model("tiny", CPU, dtype)
    direction = shape_head(model.get_output_embeddings().weight.detach())
    return Source(Prior(model), "small", 0, shape="tiny", direction=direction).inputs(B, T)


@pytest.fixture(scope="module")
def small() -> Inputs:
    return small_inputs()


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
    return Inputs(Prior(model), [batch], None, 6, 120)


# --- calibrated inputs ---


def test_targets_follow_table_8():
    assert sum(share for share, _, _ in TABLE_8) == pytest.approx(100)
    assert all(high == low for (_, _, high), (_, low, _) in itertools.pairwise(TABLE_8))
    targets = table_8_targets(4000, torch.Generator().manual_seed(1))
    assert targets.min() > 0
    assert targets.max() < 1
    for share, low, high in TABLE_8:
        found = ((targets >= low) & (targets < high)).double().mean()
        assert found == pytest.approx(share / 100, abs=1e-3)
    assert (1 - targets[targets >= 0.99]).mean() == pytest.approx(0.004, abs=0.0005)


def test_calibrated_states_have_the_probabilities_of_table_8(small):
    head, ids = small.prior.head, small.batch(0)["input_ids"]
    logits = small.states[:, :-1] @ head.weight.T  # the full softmax, in float32
    p = logits.softmax(-1).gather(-1, ids[:, 1:, None]).flatten()
    for share, low, high in TABLE_8:
        # A probability next to a border may fall on its other side.
        found = ((p >= low) & (p < high)).double().mean()
        assert found == pytest.approx(share / 100, abs=4e-3), (low, high)


def test_a_row_of_zeros_gets_a_direction_of_its_own():
    """As a padding id has where the head is tied to the embeddings (OLMo)."""
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    weight[[0, 5]] = 0
    g = shape_head(weight)
    across = (weight - (weight @ g).unsqueeze(-1) * g).norm(dim=-1)
    assert across.min() > across.median() / 2
    ids, wanted = torch.tensor([0, 5, 7]), torch.tensor([0.02, 0.5, 0.995], dtype=torch.float64)
    states = calibrated_states(weight, g, ids, wanted, torch.Generator().manual_seed(1))
    p = (states @ weight.T).softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(p.double(), wanted, rtol=1e-3, atol=1e-5)


def test_competitors_follow_zipf_and_differ_between_positions(small):
    weight = small.prior.head.weight
    logits = (small.states[:, :-1] @ weight.T).flatten(0, 1).double()
    logits[torch.arange(len(logits)), small.batch(0)["input_ids"][:, 1:].flatten()] = torch.nan
    mean = logits.nanmean(0)
    x = torch.arange(1, 1025).double().log()
    slope = ((x - x.mean()) * (mean - mean.mean())).sum() / (x - x.mean()).square().sum()
    assert slope == pytest.approx(-1, abs=0.1)
    spread = (logits - mean).square().nanmean().sqrt()
    assert spread == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_edit_selects_12_percent_of_them(dtype):
    inputs = small_inputs(dtype=dtype)
    with inputs.in_place():
        result = edit_tokens(inputs.prior, **inputs.batch(0))
    share = result.selected.sum() / result.scored.sum()
    assert share == pytest.approx(0.12, abs=0.005)
    without = edit_tokens(inputs.prior, **inputs.batch(0))
    assert not without.selected.any()  # random weights alone are never that certain


def test_prepared_states_stand_in_without_gradients_only(small):
    model, batch = small.prior.model, small.batch(0)
    calls = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    with small.in_place():
        with torch.no_grad():
            inside = model.model(input_ids=batch["input_ids"], use_cache=False)[0]
        training = model.model(input_ids=batch["input_ids"], use_cache=False)[0]
        with torch.no_grad(), pytest.raises(RuntimeError, match=r"\(1, 3\).*\(8, 128\)"):
            model.model(input_ids=torch.ones(1, 3, dtype=torch.int64))
    outside = model.model(input_ids=batch["input_ids"], use_cache=False)[0]
    handle.remove()
    assert torch.equal(inside, small.states)
    assert torch.equal(training, outside)
    assert len(calls) == 4  # the trunk's work is done all the same
    with states_replaced(small.prior, None):
        assert torch.equal(model.model(input_ids=batch["input_ids"], use_cache=False)[0], outside)


# --- the plain edit ---


def test_the_plain_edit_selects_what_the_definition_does(padded):
    model, batch = padded.prior.model, padded.batch(0)
    policy = EditPolicy(threshold=0.6, temperature=2.0)
    generator = torch.Generator().manual_seed(0)
    edited, selected = plain_edit(model, **batch, policy=policy, generator=generator)
    _, expected, _, _ = reference.edit(model, policy=policy, **batch)
    assert expected.sum() > 20
    assert torch.equal(selected, expected)
    changed = edited != batch["input_ids"]
    assert changed.any()
    assert not (changed & ~selected).any()


def test_the_plain_edit_draws_from_the_top_k():
    model = make_llama()
    ids = likely_ids(model, 4, 30)
    everything = torch.ones_like(ids)
    with pytest.warns(UserWarning, match="change no token"):
        policy = EditPolicy(threshold=0.6, top_k=1)
    edited, selected = plain_edit(model, ids, everything, ids, policy)
    assert selected.any()
    assert torch.equal(edited, ids)  # the most probable token is the one that is there
    policy = EditPolicy(threshold=0.6, top_k=2, temperature=50.0)
    edited, selected = plain_edit(model, ids, everything, ids, policy)
    top = model(input_ids=ids).logits[:, :-1].topk(2).indices
    assert (edited[:, 1:, None] == top).any(-1)[selected[:, 1:]].all()
    assert (edited != ids).sum() > selected.sum() / 4


def test_soft_targets_of_labelled_tokens_only():
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
    assert float(soft_targets_loss(model, ids, mask, labels)) == pytest.approx(
        found / count, rel=1e-4
    )


# --- switches ---


@contextlib.contextmanager
def counted():
    """Counts: logits of the head, tokens that go through the trunk, rows that are drawn for."""
    counts = {"logits": 0, "tokens": 0, "drawn": 0}

    def counting(name, function, size):
        def run(*args, **kwargs):
            result = function(*args, **kwargs)
            counts[name] += size(args, result)
            return result

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("project", "logits_of"):
            method = getattr(Head, name)
            patch.setattr(Head, name, counting("logits", method, lambda _, out: out.numel()))
        draw = switches.predictions.draw_tokens
        patch.setattr(
            switches.predictions,
            "draw_tokens",
            counting("drawn", draw, lambda args, _: len(args[3])),
        )
        yield counts


def edit_and_count(inputs: Inputs, policy: EditPolicy):
    trunk = inputs.trunk
    with counted() as counts, inputs.in_place():
        handle = trunk.register_forward_pre_hook(
            lambda _, args, kwargs: counts.update(
                tokens=counts["tokens"] + kwargs["input_ids"].numel()
            ),
            with_kwargs=True,
        )
        result = edit_tokens(inputs.prior, **inputs.batch(0), policy=policy)
        handle.remove()
    return result, counts


def assert_same_edit(ours, theirs):
    assert ours.selected.sum() > 10
    assert torch.equal(ours.selected, theirs.selected)
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize(
    ("switch", "more"),
    [("no_early_reject", "logits"), ("no_lazy_resample", "drawn"), ("padding_kept", "tokens")],
)
def test_a_trick_that_is_off_costs_more_and_changes_no_edit(padded, small, switch, more):
    inputs = padded if switch == "padding_kept" else small
    policy = HOT if switch == "padding_kept" else HOT.replace(threshold=0.99)
    edit_and_count(inputs, policy)  # the first edit measures likely competitors, too
    before, usual = edit_and_count(inputs, policy)
    assert before.changed.any()
    with getattr(switches, switch)():
        result, counts = edit_and_count(inputs, policy)
    assert_same_edit(before, result)
    assert counts[more] > usual[more] > 0
    _, counts = edit_and_count(inputs, policy)
    assert counts == usual  # on again


def test_without_early_reject_the_whole_head_is_computed(small):
    _, usual = edit_and_count(small, PAPER)
    with switches.no_early_reject():
        _, counts = edit_and_count(small, PAPER)
    B, T = small.batch(0)["input_ids"].shape
    assert usual["logits"] < 0.6 * B * (T - 1) * 1024
    assert counts["logits"] >= B * (T - 1) * 1024


def test_first_tiles_decide_nothing(small):
    before, _ = edit_and_count(small, HOT)
    prior = small.prior
    with small.in_place():
        states = prior.model.model(input_ids=small.batch(0)["input_ids"])[0].flatten(0, 1)
    usual = prior.likely_competitors(states)
    counts = []
    for num_ids in (64, 512):
        tile = switches.likely_first(prior, states, num_ids)
        assert tile.stops == (num_ids,)
        with switches.first_tile(prior, tile):
            result, counted = edit_and_count(small, HOT)
        assert_same_edit(before, result)
        counts.append(counted["logits"])
    assert counts[0] != counts[1]
    by_id = switches.in_order_of_ids(usual)
    assert by_id.stops == usual.stops
    assert by_id.order.tolist() == list(range(len(usual.order)))
    assert torch.equal(by_id.place[by_id.order], torch.arange(len(by_id.order)))
    assert not torch.equal(by_id.order, usual.order)
    with switches.first_tile(prior, by_id):
        result, _ = edit_and_count(small, HOT)
    assert_same_edit(before, result)
    assert prior.early_reject.competitors is usual


def test_the_kernel_takes_the_place_of_the_tiles(small, monkeypatch):
    before, _ = edit_and_count(small, HOT)
    seen = []

    def kernel(others, tile, own):  # takes the place of a GPU's
        seen.append(tile.numel())
        own = own.unsqueeze(-1)
        ids = torch.arange(tile.shape[1])
        sums = tile.float().masked_fill(ids == own, -math.inf).logsumexp(-1)
        torch.logaddexp(others, sums, out=others)

    monkeypatch.setattr(kernels, "add_tile", kernel)
    with switches.kernel_used(small.prior):
        result, _ = edit_and_count(small, HOT)
    assert_same_edit(before, result)
    assert seen
    assert not small.prior.uses_kernel


def test_an_eager_trunk_is_not_the_compiled_one(small):
    trunk = small.trunk
    trunk._compiled_call_impl = lambda *args, **kwargs: pytest.fail("compiled")
    with switches.eager(trunk):
        edit_tokens(small.prior, **small.batch(0))
    assert trunk._compiled_call_impl is not None
    switches.uncompile(trunk)
    edit_tokens(small.prior, **small.batch(0))


def test_a_switch_that_fits_no_more_says_so():
    with (
        pytest.raises(AttributeError, match="no_such_name"),
        switches.swapped(switches.passes, "no_such_name", None),
    ):
        pass


def test_all_variants_make_the_edit_that_is_timed(padded, small):
    for inputs in (padded, small):
        with inputs.in_place():
            variants = edit.edit_variants(inputs, HOT)
            expected = variants[passes.OURS](3)["input_ids"]
            assert (expected != inputs.batch(0)["input_ids"]).any()
            for name, variant in variants.items():
                if name.startswith("ours") and "scope" not in name and "region" not in name:
                    assert torch.equal(variant(3)["input_ids"], expected), name
            every = variants[passes.EVERY_TOKEN](3)["input_ids"]
            assert (every != expected).any()
            assert variants[passes.SOFT_TARGETS](3) > 0
    assert ('ours, prompts too (scope="all")' in variants) is False
    names = set(edit.edit_variants(padded, HOT))
    assert {'ours, prompts too (scope="all")', "ours, padding kept"} <= names
    assert "ours, epoch 2 with a cache" in names


# --- timing ---


def test_every_variant_runs_once_a_round_in_another_order():
    order: list[tuple[int, str]] = []
    variants = {name: lambda number, name=name: order.append((number, name)) for name in "abc"}
    times = compare(variants, CPU, pairs=7, seconds=60)
    assert {name: len(seconds) for name, seconds in times.seconds.items()} == dict.fromkeys(
        "abc", 7
    )
    rounds = [[name for n, name in order if n == number] for number in range(8)]
    assert all(sorted(names) == list("abc") for names in rounds)
    assert len({tuple(names) for names in rounds[1:]}) > 3
    assert times.ratios("a", "a") == [1.0] * 7


def test_what_takes_long_is_timed_less_often():
    times = compare({"a": lambda number: None}, CPU, pairs=50, seconds=0.0)
    assert len(times.seconds["a"]) == MIN_PAIRS


def test_out_of_memory_is_a_result_and_other_errors_are_errors():
    def too_much(number):
        raise torch.OutOfMemoryError("CUDA out of memory")

    times = compare({"a": lambda number: None, "b": too_much}, CPU, pairs=5, seconds=60)
    assert times.out_of_memory == ["b"]
    assert list(times.seconds) == ["a"]
    with pytest.raises(ZeroDivisionError):
        compare({"a": lambda number: 1 / 0}, CPU, pairs=5, seconds=60)


def test_quartiles():
    assert Quartiles.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Quartiles(3.0, 2.0, 4.0)
    assert Quartiles.of([7.0]) == Quartiles(7.0, 7.0, 7.0)


# --- memory ---


def test_the_tracker_counts_storages_that_live_at_once():
    before = torch.zeros(5000)
    with StorageTracker() as tracker:
        view = before[:10]  # there before
        assert tracker.live == 0
        a = torch.zeros(1000)  # 4000 bytes
        b = a.view(10, 100)[2:]  # the same memory
        assert tracker.live == 4000
        del a
        assert tracker.live == 4000
        c = b + 1  # 800 elements
        assert tracker.live == 7200
        del b, c
        assert tracker.live == 0
        view.add_(1)
        torch.zeros(100, dtype=torch.float64)
    assert tracker.live == 0
    assert tracker.peak == 7200
    del view


def test_peaks_of_functions():
    assert peak_bytes(lambda: torch.zeros(1000).double().sum(), CPU) == 4000 + 8000
    x = torch.zeros(1000)
    assert peak_bytes(lambda: x.add_(1), CPU) == 0


def test_the_plain_edit_takes_the_logits_and_ours_does_not(small):
    section = measure_memory(small, PAPER)
    found = {row.name: row.figures for row in section.rows}
    all_logits = 8 * 128 * 1024 * 4 / 2**20
    assert found[passes.PLAIN]["extra_mib"] > all_logits
    assert found[passes.OURS]["extra_mib"] < all_logits / 4
    assert "extra_mib" not in found[passes.TRUNK]


# --- survivors ---


def test_survivors_are_those_of_a_sum_by_hand(prior):
    ids = likely_ids(prior.model, 2, 20)
    hidden = prior.model.model(input_ids=ids)[0][:, :-1].flatten(0, 1).detach()
    observed = ids[:, 1:].flatten()
    order = likelihood_order(prior.head, hidden)
    mean = (hidden @ prior.head.weight.T).softmax(-1).mean(0)
    assert (mean[order].diff() <= 1e-6).all()
    found = count_survivors(prior.head, hidden, observed, order, [1, 16, 100], 0.7)
    logits = (hidden @ prior.head.weight.T).double()
    for size in (1, 16, 100, VOCAB_SIZE):
        count = 0
        for row, y in zip(logits, observed.tolist(), strict=True):
            tile = {*order[:size].tolist(), y}
            count += bool(row[y].exp() / sum(row[j].exp() for j in tile) >= 0.7)
        assert found.still_open[size] == count
    assert 0 < found.num_selected == found.still_open[VOCAB_SIZE] < found.still_open[1]
    expected = logits.log_softmax(-1).gather(-1, observed[:, None]).squeeze(-1)
    torch.testing.assert_close(found.logprob, expected, atol=1e-5, rtol=1e-5)


def test_tokens_that_need_candidates():
    logprob = torch.full((1000,), math.log(0.99), dtype=torch.float64)
    paper = mean_needing_candidates(logprob, EditPolicy.paper(), seed=0)
    assert paper == pytest.approx(10, rel=0.2)  # u >= P
    assert mean_needing_candidates(logprob, EditPolicy.reference_code(), seed=0) > 5 * paper
    assert mean_needing_candidates(logprob[:0], EditPolicy.paper(), seed=0) == 0


def test_the_survivors_of_a_calibrated_batch(small):
    section = measure_survivors(small, PAPER, seed=0)
    counts = [row.figures["by_id"] for row in section.rows]
    assert counts == sorted(counts, reverse=True)
    assert section.rows[-1].figures["num_ids"] == 1024
    assert section.rows[-1].figures["by_likelihood"] == section.figures["num_selected"] > 30
    assert section.figures["num_positions"] == 8 * 127 // 2


# --- agreement ---


def test_a_float32_prior_agrees_with_the_definition(padded):
    section = measure_agreement(padded, HOT, name=None)
    definition, ours = section.rows
    assert ours.name == "float32"
    assert ours.figures["num_turned"] == 0
    assert ours.figures["selected"] == definition.figures["selected"] > 10
    assert "median" not in ours.figures


def test_rounding_turns_decisions_next_to_the_threshold():
    model = make_llama().bfloat16()
    ids = likely_ids(make_llama(), 8, 60)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    inputs = Inputs(Prior(model), [batch], None, 8, 60)
    policy = EditPolicy(threshold=0.5, protect_special=False)
    section = measure_agreement(inputs, policy, name=None, quantizations=())
    _, ours = section.rows
    selected = edit_tokens(inputs.prior, **batch, policy=policy).selected[:, 1:]
    p = reference.logprob(make_llama().bfloat16().float(), ids)[:, 1:].exp()
    turned = selected != (p >= 0.5)
    assert ours.figures["num_turned"] == turned.sum() > 0
    assert ours.figures["largest"] == pytest.approx(float((p - 0.5).abs()[turned].max()), abs=1e-4)
    assert ours.figures["largest"] < 0.2
    assert "bfloat16" in format_section(section)


def test_a_quantization_that_can_not_be_had_is_a_line_in_the_table(padded):
    section = measure_agreement(padded, HOT, name="nowhere", quantizations=["6bit"])
    assert section.rows[-1].name == "6bit"
    assert "can't be had here" in format_section(section)


def test_agreement_of_the_head_alone():
    section = measure_agreement(small_inputs(dtype=torch.bfloat16), PAPER, name=None)
    definition, ours = section.rows
    assert definition.figures["share"] == pytest.approx(0.12, abs=0.005)
    assert ours.figures["turned_share"] < 0.005
    assert any("only the head" in note for note in section.notes)


# --- the head alone, and libraries ---


def test_all_ways_to_log_p_agree(small):
    section = measure_head(small, PAPER, pairs=5)
    assert section.rows[0].figures["ratio"] == 1
    assert len(section.rows) >= 3
    assert all(row.figures["off_by"] < 1e-4 for row in section.rows)


def test_libraries_compute_log_p(prior):
    pytest.importorskip("trl.kernels.chunked_logprob")
    found = installed_libraries(CPU)
    states, ids = torch.randn(50, 32), torch.randint(VOCAB_SIZE, (50,))
    expected = exact_logprob(prior.head, states, ids)
    assert found
    for logprob in found.values():
        torch.testing.assert_close(logprob(states, prior.head.weight.detach(), ids), expected)


def test_libraries_of_gpus_are_asked_for_log_p(prior, monkeypatch):
    """Their signatures, as they publish them; the real ones need a GPU."""

    def loss(e, c, targets, *, reduction):
        return torch.nn.functional.cross_entropy(e @ c.T, targets, reduction=reduction)

    names = ("cut_cross_entropy", "liger_kernel", "liger_kernel.transformers")
    modules = {name: types.ModuleType(name) for name in names}
    modules["cut_cross_entropy"].linear_cross_entropy = loss
    functional = types.ModuleType("functional")
    functional.liger_fused_linear_cross_entropy = loss
    modules["liger_kernel.transformers.functional"] = functional
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    found = installed_libraries(torch.device("cuda"))
    states, ids = torch.randn(50, 32), torch.randint(VOCAB_SIZE, (50,))
    expected = exact_logprob(prior.head, states, ids)
    for name in ("cut-cross-entropy", "Liger, fused linear cross-entropy"):
        torch.testing.assert_close(found[name](states, prior.head.weight.detach(), ids), expected)


# --- training ---


def test_steps_train_and_leave_the_prior_as_it_was(small):
    pytest.importorskip("peft")
    before = {k: v.clone() for k, v in small.prior.model.state_dict().items()}
    inputs = small_inputs(B=2, T=32)
    section = measure_training(inputs, HOT, pairs=5)
    assert [row.name for row in section.rows] == [
        f"{kind}, {step}"
        for kind in ("LoRA, checkpointing", "LoRA", "full fine-tuning")
        for step in ("without editing", "edited", "epoch 2, cached")
    ]
    after = inputs.prior.model.state_dict()
    assert before.keys() == after.keys()  # no adapters are left
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not inputs.prior.model.training
    assert not any(p.requires_grad for p in inputs.prior.model.parameters())


def test_a_trainee_with_lora_is_scored_by_the_prepared_states():
    pytest.importorskip("peft")
    inputs = small_inputs()
    with training._lora(inputs, checkpointing=True) as (trainee, prior), inputs.in_place():
        assert prior.is_shared
        assert trainee.training
        collator = ToEditCollator(prior, PAPER, base_collator=dict)
        batch = collator(inputs.batch(0)).to(CPU)
        assert collator.stats["selected_share"] == pytest.approx(0.12, abs=0.005)
        loss = trainee(**batch, use_cache=False).loss
        assert loss > 5  # of random weights: it trains on states of its own
        loss.backward()


def test_the_edited_step_trains_on_edited_tokens(padded):
    given = []
    trainee = make_llama(seed=1).train()
    trainee.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    steps = training_steps(padded, trainee, padded.prior, HOT)
    before = trainee.lm_head.weight.clone()
    passes: list[int] = []
    with_hook = padded.trunk.register_forward_hook(lambda *_: passes.append(len(given)))
    for step in steps.values():
        step(4)
    with_hook.remove()
    unedited, edited, cached = given
    assert set(passes) == {1}  # before the second step alone: the third finds all in its cache
    source = padded.batch(0)["input_ids"]
    assert torch.equal(unedited, source)
    assert not torch.equal(edited, source)
    assert torch.equal(cached, edited)
    assert not torch.equal(trainee.lm_head.weight, before)


# --- data ---


def write_lines(path, *lines):
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_long_texts_are_cut_and_short_rows_padded(tmp_path):
    prior = Prior(make_llama(), make_tokenizer())
    data = write_lines(
        tmp_path / "a.jsonl",
        {"input_ids": list(range(5, 26))}, {"input_ids": [7, 8, 9]}, {"input_ids": [4, 3]},
    )  # fmt: skip
    batches = rows.text_batches(prior, open_data(data), num=3, B=2, T=8, seed=0)
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


def test_prompts_have_no_labels(tmp_path):
    tokenizer = make_tokenizer()
    prior = Prior(make_llama(), tokenizer)
    prompt = [{"role": "user", "content": "the fox"}]
    completion = [{"role": "assistant", "content": "jumps over the dog"}]
    chat = write_lines(tmp_path / "a.jsonl", {"prompt": prompt, "completion": completion})
    plain = write_lines(tmp_path / "b.jsonl", {"prompt": "the fox ", "completion": "jumps"})
    messages = write_lines(tmp_path / "c.jsonl", {"messages": prompt + completion})
    for path, kept in ((chat, "jumps over the dog<|im_end|>\n"), (plain, "jumps<|eos|>")):
        (batch,) = rows.text_batches(prior, open_data(path), num=1, B=1, T=200, seed=0)
        labels = batch["labels"][0]
        assert tokenizer.decode(labels[labels != -100]) == kept
        assert (labels == -100).any()
    (batch,) = rows.text_batches(prior, open_data(messages), num=1, B=1, T=200, seed=0)
    assert torch.equal(batch["labels"], batch["input_ids"])


def test_rows_of_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"input_ids": [[5, 6, 7], [8, 9]], "labels": [[-100, 6, 7], [8, 9]]})
    parquet.write_table(table, path)
    (batch,) = rows.text_batches(Prior(make_llama()), open_data(path), num=1, B=2, T=8, seed=0)
    assert sorted(batch["labels"].tolist()) == [[-100, 6, 7], [8, 9, -100]]


def test_texts_between_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the quick fox\n\n\n  \nthe lazy dog\nwalks\n")
    prior = Prior(make_llama(), make_tokenizer())
    (batch,) = rows.text_batches(prior, open_data(path), num=5, B=2, T=100, seed=0)
    rows_of_ids = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    assert {prior.tokenizer.decode(ids[mask == 1]).strip() for ids, mask in rows_of_ids} == {
        "the quick fox<|eos|>",
        "the lazy dog\nwalks<|eos|>",
    }


# --- table ---


def test_a_section_as_text_and_as_data():
    section = Section(
        "edit",
        "A title",
        [Column("ratio", "{ratio:.2f}"), Column("ms", "{ms:.1f}")],
        [
            Row("one", {"ratio": 1.0, "ms": 12.34}),
            Row("two", {"ratio": 1.5}),
            Row("three", text="out of memory"),
        ],
        notes=["A note."],
        figures={"more": 7},
    )
    assert format_section(section).splitlines() == [
        "",
        "A title",
        "-------",
        "       ratio    ms",
        "one     1.00  12.3",
        "two     1.50",
        "three  out of memory",
        "A note.",
    ]
    record = section.record()
    assert record["rows"][1] == {"name": "two", "ratio": 1.5}
    assert record["rows"][2] == {"name": "three", "text": "out of memory"}
    assert record["more"] == 7


def test_shapes_have_the_sizes_of_the_models():
    """Weights in billions, as the models' pages have them; nothing is allocated."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"llama3-8b": 8.03, "olmo-1b": 1.18, "qwen2.5-0.5b": 0.494, "tiny": 0.011}
    for shape, size in sizes.items():
        settings = dict(shapes.SHAPES[shape])
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(size, rel=0.01)


# --- the command ---


def run(*argv: str) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = main(["bench", *argv])
    return status, printed.getvalue()


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


def test_a_whole_run_on_random_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", SMALL)
    path = tmp_path / "out.json"
    status, printed = run("--batch", "2", "--length", "64", "--pairs", "5", "--json", str(path))
    assert status == 0
    assert f"toedit bench --batch-size 2 --max-length 64 --pairs 5 --json {path}" in printed
    assert "competitors: Zipf over ids" in printed
    for name in (
        "bare backbone",
        "plain / ours",
        "MiB",
        "by likelihood",
        "definition",
        "LoRA, edited",
    ):
        assert name in printed
    record = json.loads(path.read_text())
    parts = record["parts"]
    assert list(parts) == [
        "edit", "head", "memory", "host", "survivors", "agreement", "training", "journal"
    ]  # fmt: skip
    assert [row["length"] for row in parts["journal"]["rows"]] == [256, 512, 1024]
    assert all(8 < row["bytes_per_document"] < 20 for row in parts["journal"]["rows"])
    ours = next(row for row in parts["edit"]["rows"] if row["name"] == "ours")
    assert len(ours["all_ms"]) == 5
    assert ours["low"] <= ours["ratio"] <= ours["high"]
    assert parts["edit"]["counts"]["scored"] == 2 * 63
    assert {"command", "device", "dtype", "torch", "transformers", "threads"} <= set(
        record["facts"]
    )


def test_a_run_on_a_prior_and_text(real):
    prior, data = real
    status, printed = run(
        "--prior", prior, "--data", data, "--batch", "3", "--length", "48", "--pairs", "5",
        "--parts", "agreement,edit,survivors", "--dtype", "float32", "--policy", "reference_code",
        "--json", "-", "--quantization", "6bit",
    )  # fmt: skip
    assert status == 0
    record = json.loads(printed)  # and nothing else is printed
    assert list(record["parts"]) == ["edit", "survivors", "agreement"]
    names = [row["name"] for row in record["parts"]["edit"]["rows"]]
    assert "ours, padding kept" in names
    assert record["parts"]["agreement"]["rows"][1]["num_turned"] == 0
    assert record["parts"]["agreement"]["rows"][2]["text"].startswith("can't be had here")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prior", "x"], r"--prior x: .* add --data"),
        (["--data", "x"], r"--data x: .* add --prior"),
        (["--prior", "x", "--data", "y", "--shape", "tiny"], r"--shape tiny .* leave one"),
        (["--prior", "nowhere/x", "--data", "y"], r"--prior nowhere/x: can't be loaded .* name a"),
        (["--quantization", "8bit"], r"--quantization 8bit: .* add --prior"),
        (["--max-length", "600"], r"--max-length 600: the prior has 512 .* give at most"),
        (["--max-length", "1"], r"--max-length 1: .* give 2 at least"),
        (
            ["--policy", "filtering"],
            r"--policy filtering: the bench .* name such a policy",
        ),
        (["--policy", "target=labels"], r"--policy target=labels: the bench .* target=both and no"),
        (["--policy", "papper"], r"--policy: policy must be one of paper, .*got 'papper'"),
        (["--device", "abacus"], r"--device abacus: .* write cpu"),
        (["--json", "/no/such/x.json"], r"--json /no/such/x.json: .* make it first"),
        (["--plot", "x.doc"], r"--plot x.doc: .*'.doc'.* write .png"),
    ],
)
def test_arguments_that_can_not_be_used(argv, message, capsys):
    assert main(["bench", *argv]) == 2
    printed = capsys.readouterr().err
    assert re.search(message, printed, re.DOTALL), printed
    assert printed.startswith("toedit bench: error: ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--parts", "edit,speed"], "no part 'speed'; write some of edit,"),
        (["--pairs", "0"], "must be a whole number above 0, got '0'"),
        (["--seed", "-1"], "whole number in"),
        (["--shape", "gpt5"], "llama3-8b"),
    ],
)
def test_arguments_that_argparse_refuses(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["bench", *argv])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"input_ids": [5, 6, 7]}], "gives 1 pieces of up to 64 tokens, and a batch takes 8"),
        (
            [{"input_ids": [5, 6, 320]}],
            "line 1 has the token 320, which is not in the prior's vocabulary, [0, 320)",
        ),
        (
            [{"input_ids": [5, 6], "labels": [5]}],
            "labels of line 1 holds 1 numbers, not one for each",
        ),
        ([{"input_ids": [5, 6], "labels": [5, -100]}] * 8, "no token has a label other than -100"),
        ([{"words": "x"}], "has the columns ['words'], none of input_ids, text"),
        ([{"messages": [{"who": "me"}]}], "neither text nor a list of messages"),
        ([{"messages": [{"role": "me"}]}], "chat template refuses"),
    ],
)
def test_data_that_can_not_be_used(real, tmp_path, lines, message, capsys):
    data = write_lines(tmp_path / "a.jsonl", *lines)
    assert main(["bench", "--prior", real[0], "--data", str(data), "--length", "64"]) == 2
    assert message in capsys.readouterr().err


def test_too_large_a_shape_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(shapes, "available_bytes", lambda device: 2**30)
    assert main(["bench", "--shape", "llama3-8b"]) == 2
    assert "--shape llama3-8b: its weights take 15.0 GiB in bfloat16" in capsys.readouterr().err


def test_training_of_a_large_shape_on_a_cpu_is_left_out_unless_asked(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "olmo-1b", SMALL)
    argv = ("--shape", "olmo-1b", "--batch", "2", "--length", "32", "--pairs", "5")
    _, printed = run(*argv)
    assert "The part training is left out" in printed
    assert "training step" not in printed
    _, printed = run(*argv, "--parts", "training")
    assert "training step" in printed


def test_a_chart_needs_matplotlib(tmp_path, monkeypatch, capsys):
    path = tmp_path / "chart.png"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "--plot", str(path)]) == 2
    assert "matplotlib, which is not installed; pip install matplotlib" in capsys.readouterr().err


def test_the_chart(tmp_path, monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", SMALL)
    path = tmp_path / "chart.png"
    status, _ = run(
        "--batch", "2", "--length", "32", "--pairs", "5", "--parts", "edit,survivors",
        "--plot", str(path),
    )  # fmt: skip
    assert status == 0
    assert path.stat().st_size > 1000


def test_help_is_light():
    code = (
        "import sys, contextlib\n"
        "from toedit_collate.commands.main import main\n"
        "with contextlib.suppress(SystemExit): main(['bench', '--help'])\n"
        "loaded = {'trl', 'peft', 'datasets', 'matplotlib', 'toedit_collate.commands.bench.run'}\n"
        "sys.exit(f'loaded: {loaded & set(sys.modules)}' if loaded & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
