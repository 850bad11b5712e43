import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from toedit_collate.head import logprob as scores_module
from toedit_collate.head import projection
from toedit_collate.head.logprob import (
    MARGIN,
    Competitors,
    exact_logprob,
    measure_competitors,
    score_observed,
)
from toedit_collate.head.projection import Head, tile_elements


def make_head(V=300, D=16, *, seed=0, dtype=torch.float32, bias=False, **options):
    torch.manual_seed(seed)
    module = nn.Linear(D, V, bias=bias).to(dtype)
    with torch.no_grad():
        module.weight.mul_(12)
    bias = None if module.bias is None else module.bias.detach()
    return Head(module.weight.detach(), bias, **options)


def full_logprob(head, hidden, ids):
    """The definition: a softmax over the whole vocabulary, in float64."""
    raw = torch.nn.functional.linear(hidden, head.weight, head.bias)
    raw = raw * head.scale
    if head.softcap is not None:
        raw = torch.tanh(raw / head.softcap) * head.softcap
    return raw.double().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def competitors_of(order, V, stops):
    """Those ids, in that order and in these tiles."""
    place = torch.full((V,), len(order))
    place[order] = torch.arange(len(order))
    return Competitors(order, place, (*(stop for stop in stops if stop < len(order)), len(order)))


OPTIONS = [
    {},
    {"bias": True},
    {"softcap": 5.0},
    {"scale": 0.25},
    {"bias": True, "softcap": 9.0, "scale": 2.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("n", [1, 3, 70])
def test_exact_logprob(options, n):
    head = make_head(**options)
    hidden, ids = torch.randn(n, 16), torch.randint(0, 300, (n,))
    expected = full_logprob(head, hidden, ids)
    assert torch.allclose(exact_logprob(head, hidden, ids).double(), expected, atol=2e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    V=st.integers(2, 700),
    num_likely=st.integers(1, 700),
    stops=st.sets(st.integers(1, 700), max_size=3),
    threshold=st.floats(1e-4, 0.999),
)
def test_a_cut_decides_as_the_definition_does(options, seed, n, V, num_likely, stops, threshold):
    """With early reject, by any order of the ids: exact at and above the cut, a bound below it."""
    head = make_head(V, seed=seed, **options)
    hidden, ids = torch.randn(n, 16), torch.randint(0, V, (n,))
    # Make half of the observed ids probable, or high thresholds would select nothing.
    best = head.logits(hidden).argmax(-1)
    ids = torch.where(torch.rand(n) < 0.5, best, ids)
    competitors = competitors_of(torch.randperm(V)[:num_likely], V, sorted(stops))
    cut = math.log(threshold)
    expected = full_logprob(head, hidden, ids)
    scores = score_observed(head, hidden, ids, lowest_cut=cut, competitors=competitors)
    got = scores.logprob.double()
    clear = (expected - cut).abs() > 1e-4
    at_or_above = expected >= cut
    assert torch.equal((got >= cut)[clear], at_or_above[clear])
    assert scores.is_open[at_or_above & clear].all()
    assert torch.allclose(got[at_or_above & clear], expected[at_or_above & clear], atol=1e-4)
    assert (got >= expected - 1e-4).all()
    assert scores.is_finite.all()


def test_the_order_of_the_competitors_decides_nothing():
    """Not even at the threshold: what is given up lies under it by more than rounding."""
    head = make_head(V=900, dtype=torch.bfloat16)
    hidden = torch.randn(300, 16, dtype=torch.bfloat16)
    ids = head.logits(hidden).topk(2).indices[:, 0]
    exact = exact_logprob(head, hidden, ids)
    for number in range(20):  # each time exactly at the threshold of one row
        cut = float(exact[number])
        for seed in range(3):
            order = torch.randperm(900, generator=torch.Generator().manual_seed(seed))[:200]
            competitors = competitors_of(order, 900, [40])
            scores = score_observed(head, hidden, ids, lowest_cut=cut, competitors=competitors)
            assert abs(float(scores.logprob[number]) - cut) < 1e-5
            clear = (exact - cut).abs() > 1e-5
            assert torch.equal((scores.logprob >= cut)[clear], (exact >= cut)[clear])
    assert MARGIN > 1e-5


def test_competitors_are_the_likeliest_ids():
    head = make_head(V=4000, D=16)
    hidden = torch.randn(30, 16)
    mean = head.logits(hidden).softmax(-1).mean(0)
    competitors = measure_competitors(head, hidden)
    assert competitors.stops == (64, 256)
    assert torch.equal(competitors.order, mean.topk(256).indices)
    assert torch.equal(competitors.place[competitors.order], torch.arange(256))
    assert (competitors.place < 256).sum() == 256


@pytest.mark.parametrize(
    ("vocab_size", "near", "far"),
    [(20, 20, 20), (300, 64, 256), (8192, 1024, 256), (128_256, 16_384, 1002)],
)
def test_tiles_grow_where_asking_is_free(vocab_size, near, far):
    assert scores_module._tiles(vocab_size, only_one=False)[-1] == near
    assert scores_module._tiles(vocab_size, only_one=True) == (far,)


class _Counted(Head):
    """Counts the rows of each tile: (rows, columns)."""

    tiles: list

    def project(self, hidden, start=0, stop=None):
        result = super().project(hidden, start, stop)
        self.tiles.append(tuple(result.shape))
        return result

    def logits_of(self, hidden, ids):
        result = super().logits_of(hidden, ids)
        self.tiles.append(tuple(result.shape))
        return result


def test_early_reject_leaves_nearly_the_whole_head_out():
    plain = make_head(V=4096)
    head = _Counted(plain.weight * 3)
    object.__setattr__(head, "tiles", [])
    hidden, ids = torch.randn(64, 16), torch.randint(0, 4096, (64,))
    ids[:3] = head.logits(hidden[:3]).argmax(-1)
    competitors = measure_competitors(head, hidden)
    head.tiles.clear()
    cut = math.log(0.99)
    scores = score_observed(head, hidden, ids, lowest_cut=cut, competitors=competitors)
    assert sum(rows * columns for rows, columns in head.tiles) < 0.2 * 64 * 4096
    head.tiles.clear()
    exact = exact_logprob(head, hidden, ids)
    assert sum(rows * columns for rows, columns in head.tiles) == 64 * 4096
    assert torch.equal(scores.logprob >= cut, exact >= cut)
    assert (exact >= cut).any()


def test_near_one_keeps_its_precision():
    """P = 1 - 1e-6 must not round to 1, nor its complement to nothing."""
    weight = torch.tensor([[13.8155], [0.0]])  # odds of 1e6
    head = Head(weight)
    value = exact_logprob(head, torch.ones(1, 1), torch.tensor([0]))
    assert -value.item() == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}])
def test_bf16_agrees_with_the_models_own_rounding(options):
    """With bf16 weights, log P is that of the logits which the model itself would compute."""
    head = make_head(V=2000, D=64, dtype=torch.bfloat16, **options)
    hidden = torch.randn(200, 64, dtype=torch.bfloat16)
    best = head.project(hidden).argmax(-1)
    ids = torch.where(torch.arange(200) % 2 == 0, best, torch.randint(0, 2000, (200,)))
    expected = full_logprob(head, hidden, ids)
    got = exact_logprob(head, hidden, ids).double()
    # Sums in another order round a few logits the other way, by one step of bf16.
    assert ((got - expected).abs() < 1e-3).float().mean() > 0.95
    assert (got - expected).abs().max() < 0.3


@pytest.mark.parametrize("with_competitors", [True, False])
@pytest.mark.parametrize("where", ["states", "weights"])
def test_nan_comes_out_and_is_told(with_competitors, where):
    head = make_head()
    hidden = torch.randn(3, 16)
    ids = head.logits(hidden).argmax(-1)
    competitors = measure_competitors(head, hidden) if with_competitors else None
    if where == "states":
        hidden[1, 4] = float("nan")
    else:  # of an id that few rows would visit
        last = competitors.order[-1] if with_competitors else 17
        head.weight[last, 4] = float("nan")
    scores = score_observed(head, hidden, ids, lowest_cut=math.log(1e-6), competitors=competitors)
    expected = [True, False, True] if where == "states" else [False] * 3
    assert scores.is_finite.tolist() == expected
    assert scores.logprob.isnan().tolist() == [not finite for finite in expected]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_leaves_no_competitors(value):
    head = make_head()
    hidden = torch.randn(30, 16)
    assert measure_competitors(head, hidden) is not None
    head.weight[299, 3] = value  # wherever it is
    assert measure_competitors(head, hidden) is None


@pytest.mark.parametrize("rows", [1, 3])
def test_sums_of_a_few_rows_are_those_of_logsumexp(monkeypatch, rows):
    monkeypatch.setattr(projection, "PIECE_ELEMENTS", rows * 200)
    tile = (torch.randn(7, 200, generator=torch.Generator().manual_seed(0)) * 30).bfloat16()
    tile[2] = -math.inf
    place = torch.tensor([5, 0, 3, 199, 200, -1, 9])  # two are outside of the tile
    others = tile.float()
    others[[0, 1, 3, 6], [5, 0, 199, 9]] = -math.inf
    found = scores_module._logsumexp_of_others(tile, place, 0)
    torch.testing.assert_close(found, others.logsumexp(-1))


def test_when_no_decision_depends_on_p_only_numbers_are_checked():
    head = make_head()
    hidden, ids = torch.randn(4, 16), torch.arange(4)
    competitors = measure_competitors(head, hidden)
    hidden[1, 3] = math.nan
    scores = score_observed(head, hidden, ids, lowest_cut=math.inf, competitors=competitors)
    assert scores.is_finite.tolist() == [True, False, True, True]
    assert not scores.is_open.any()


def test_tiles_stay_small():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert tile_elements(8192, 128_256, cpu) <= 2**22
    assert tile_elements(8192, 128_256, gpu) <= 2**24
    assert tile_elements(64, 1000, cpu) <= 0.05 * 64 * 1000
    assert exact_logprob(make_head(), torch.zeros(0, 16), torch.zeros(0).long()).shape == (0,)
