import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from toedit_collate import head as head_module
from toedit_collate.head import Head, observed_logprob, tile_elements


def make_head(V=300, D=16, *, seed=0, dtype=torch.float32, bias=False, opaque=False, **options):
    torch.manual_seed(seed)
    module = nn.Linear(D, V, bias=bias).to(dtype)
    with torch.no_grad():
        module.weight.mul_(12)
    return Head(
        weight=None if opaque else module.weight.detach(),
        bias=None if module.bias is None else module.bias.detach(),
        module=lambda h: module(h).detach(),
        vocab_size=V,
        **options,
    )


def full_logprob(head, hidden, ids):
    """The definition: a softmax over the whole vocabulary, in float64."""
    raw = head.module(hidden)
    raw = raw * head.scale
    if head.softcap is not None:
        raw = torch.tanh(raw / head.softcap) * head.softcap
    return raw.double().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


OPTIONS = [
    {},
    {"bias": True},
    {"softcap": 5.0},
    {"scale": 0.25},
    {"bias": True, "softcap": 9.0, "scale": 2.0},
    {"opaque": True},
    {"opaque": True, "bias": True, "softcap": 9.0, "scale": 2.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("n", [1, 3, 70])
def test_exact_by_default(options, n):
    head = make_head(**options)
    hidden, ids = torch.randn(n, 16), torch.randint(0, 300, (n,))
    expected = full_logprob(head, hidden, ids)
    assert torch.allclose(observed_logprob(head, hidden, ids).double(), expected, atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    V=st.integers(2, 700),
    first=st.integers(1, 700),
    threshold=st.floats(1e-4, 0.999),
)
def test_a_cut_decides_as_the_definition_does(seed, n, V, first, threshold):
    """With early reject: exact at and above the cut, an upper bound below it."""
    head = make_head(V, seed=seed)
    hidden, ids = torch.randn(n, 16), torch.randint(0, V, (n,))
    # Make half of the observed ids probable, or high thresholds would select nothing.
    best = head.module(hidden).argmax(-1)
    ids = torch.where(torch.rand(n) < 0.5, best, ids)
    expected = full_logprob(head, hidden, ids)
    old = head_module.FIRST_TILE_IDS
    head_module.FIRST_TILE_IDS = first
    try:
        got = observed_logprob(head, hidden, ids, lowest_cut=math.log(threshold)).double()
    finally:
        head_module.FIRST_TILE_IDS = old
    clear = (expected - math.log(threshold)).abs() > 1e-4
    at_or_above = expected >= math.log(threshold)
    assert torch.equal((got >= math.log(threshold))[clear], at_or_above[clear])
    assert torch.allclose(got[at_or_above & clear], expected[at_or_above & clear], atol=1e-4)
    assert (got >= expected - 1e-4).all()


def test_early_reject_really_leaves_rows_out(monkeypatch):
    head = make_head(V=4096)
    rows = []
    logits = Head.logits

    def counted(self, hidden, start=0, stop=None):
        rows.append((len(hidden), start))
        return logits(self, hidden, start, stop)

    monkeypatch.setattr(Head, "logits", counted)
    hidden, ids = torch.randn(64, 16), torch.randint(0, 4096, (64,))
    observed_logprob(head, hidden, ids, lowest_cut=math.log(0.99))
    visited = sum(n for n, start in rows if start > 0)
    assert sum(n for n, start in rows if start == 0) == 64
    assert visited < 64


def test_near_one_keeps_its_precision():
    """P = 1 - 1e-6 must not round to 1, nor its complement to nothing."""
    weight = torch.tensor([[13.8155], [0.0]])  # odds of 1e6
    head = Head(weight=weight, bias=None, module=None, vocab_size=2)
    value = observed_logprob(head, torch.ones(1, 1), torch.tensor([0]))
    assert -value.item() == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}])
def test_bf16_agrees_with_the_models_own_rounding(options):
    """With bf16 weights, log P is that of the logits which the model itself would compute."""
    head = make_head(V=2000, D=64, dtype=torch.bfloat16, **options)
    hidden = torch.randn(200, 64, dtype=torch.bfloat16)
    best = head.module(hidden).argmax(-1)
    ids = torch.where(torch.arange(200) % 2 == 0, best, torch.randint(0, 2000, (200,)))
    expected = full_logprob(head, hidden, ids)
    got = observed_logprob(head, hidden, ids).double()
    # Sums in another order round a few logits the other way, by one step of bf16.
    assert ((got - expected).abs() < 1e-3).float().mean() > 0.95
    assert (got - expected).abs().max() < 0.3


def test_nan_comes_out():
    head = make_head()
    hidden = torch.randn(3, 16)
    hidden[1, 4] = float("nan")
    value = observed_logprob(head, hidden, torch.tensor([1, 2, 3]), lowest_cut=math.log(0.99))
    assert value.isnan().tolist() == [False, True, False]


def test_tiles_stay_small():
    assert tile_elements(8192, 128_256) <= 2**22
    assert tile_elements(64, 1000) <= 0.05 * 64 * 1000
    assert observed_logprob(make_head(), torch.zeros(0, 16), torch.zeros(0).long()).shape == (0,)
