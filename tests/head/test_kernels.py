"""The fused kernel against the definition: on a GPU, or else in triton's interpreter.

On a CPU: `TRITON_INTERPRET=1 pytest tests/head/test_kernels.py`. Without triton, most of it skips.
"""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from toedit_collate.head.kernels import is_available, launch, observed_logprob
from toedit_collate.head.logprob import exact_logprob
from toedit_collate.head.projection import Head

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CUT = math.log(0.3)

pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
needs_kernel = pytest.mark.skipif(
    not is_available(DEVICE), reason="needs triton, and a GPU or TRITON_INTERPRET=1"
)
needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="no GPU")


@pytest.fixture(autouse=True, scope="module")
def small_splits():
    """Several splits of the ids, and a first tile that leaves rows open, in a small vocabulary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "IDS_PER_SPLIT", 128)
        patch.setattr(launch, "NUM_FIRST_IDS", 40)
        yield


def make_head(V=300, D=16, *, seed=0, dtype=torch.float32, bias=False, **options):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(V, D, generator=generator) * (7 / math.sqrt(D))
    bias = torch.randn(V, generator=generator).to(DEVICE, dtype) if bias else None
    weight = weight.to(DEVICE, dtype)
    return Head(weight=weight, bias=bias, module=None, vocab_size=V, **options)


def make_rows(head, n, *, seed=0):
    """Hidden states and observed ids, of which half are the most probable ones."""
    assert head.weight is not None
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, head.weight.shape[1], generator=generator).to(head.weight)
    ids = torch.randint(0, head.vocab_size, (n,), generator=generator).to(DEVICE)
    own_choice = (torch.rand(n, generator=generator) < 0.5).to(DEVICE)
    return hidden, torch.where(own_choice, head.logits(hidden).argmax(-1), ids)


def full_logprob(head, hidden, ids):
    """The definition: a softmax over the whole vocabulary, in float64."""
    logprob = head.logits(hidden).double().log_softmax(-1)
    return logprob.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def assert_close(got, expected, dtype):
    assert got.dtype == torch.float32
    error = (got.double() - expected).abs()
    if dtype == torch.float32:
        assert error.max() < 1e-4
    else:
        # Sums in another order round a few logits the other way, by one step of the dtype.
        assert (error < 1e-3).double().mean() > 0.95
        assert error.max() < 0.3


OPTIONS = [
    {},
    {"bias": True},
    {"softcap": 5.0},
    {"scale": 0.25},
    {"bias": True, "softcap": 9.0, "scale": 2.0},
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_exact_by_default(options, dtype):
    head = make_head(dtype=dtype, **options)
    hidden, ids = make_rows(head, 70)
    assert_close(observed_logprob(head, hidden, ids), full_logprob(head, hidden, ids), dtype)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n", "V", "D"), [(1, 17, 20), (3, 1, 1), (33, 129, 50), (2, 128, 64), (65, 257, 127)]
)
def test_any_size(n, V, D, dtype):
    head = make_head(V, D, dtype=dtype, bias=True)
    hidden, ids = make_rows(head, n)
    for cut in (-math.inf, -1e-6):
        got = observed_logprob(head, hidden, ids, lowest_cut=cut)
        expected = full_logprob(head, hidden, ids)
        assert got.shape == (n,)
        assert (got >= expected - 0.3).all()
        if cut == -math.inf:
            assert_close(got, expected, dtype)


def check_decisions(head, hidden, ids, cut, first_ids=None):
    """With early reject: exact at and above the cut, an upper bound below it."""
    expected = full_logprob(head, hidden, ids)
    got = observed_logprob(head, hidden, ids, lowest_cut=cut, first_ids=first_ids).double()
    # One step of bf16 in a logit moves log P by up to 0.1 here; float32 by next to nothing.
    slack = 1e-4 if hidden.dtype == torch.float32 else 0.1
    clear = (expected - cut).abs() > slack
    at_or_above = expected >= cut
    assert torch.equal((got >= cut)[clear], at_or_above[clear])
    error = (got - expected)[at_or_above & clear].abs()
    assert error.numel() == 0 or error.max() < slack
    assert (got >= expected - slack).all()
    return at_or_above


@needs_kernel
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    V=st.integers(2, 400),
    D=st.integers(1, 40),
    num_first=st.none() | st.integers(1, 400),
    threshold=st.floats(1e-4, 0.999),
    dtype=st.sampled_from(DTYPES),
    options=st.sampled_from(OPTIONS),
)
def test_a_cut_decides_as_the_definition_does(seed, n, V, D, num_first, threshold, dtype, options):
    head = make_head(V, D, seed=seed, dtype=dtype, **options)
    hidden, ids = make_rows(head, n, seed=seed + 1)
    first = None if num_first is None else torch.randperm(V)[:num_first].to(DEVICE)
    check_decisions(head, hidden, ids, math.log(threshold), first)


@needs_kernel
@pytest.mark.parametrize("threshold", [0.99, 0.1])
@pytest.mark.parametrize("first", [range(40), [299, 7, 150]], ids=["default", "given"])
def test_observed_ids_in_and_out_of_the_first_tile(first, threshold):
    head = make_head()
    hidden, ids = make_rows(head, 70)
    ids[:70:9] = head.logits(hidden[:70:9])[:, list(first)].argmax(-1)
    ids[:70:9] = torch.tensor(list(first), device=DEVICE)[ids[:70:9]]
    first_ids = torch.tensor(list(first), device=DEVICE)
    inside = torch.isin(ids, first_ids)
    given = None if first == range(40) else first_ids
    above = check_decisions(head, hidden, ids, math.log(threshold), given)
    for where in (inside, ~inside):
        assert (above & where).any()
        assert (~above & where).any()


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_agrees_with_the_pytorch_path(options, dtype):
    head = make_head(V=700, D=64, dtype=dtype, **options)
    hidden, ids = make_rows(head, 50)
    expected = exact_logprob(head, hidden, ids)
    cut = expected.median().item() - 0.05
    got = observed_logprob(head, hidden, ids, lowest_cut=cut)
    above = expected >= cut
    assert_close(got[above], expected[above].double(), dtype)
    assert (got[~above] < cut).double().mean() > 0.9


@needs_kernel
def test_near_one_keeps_its_precision():
    """P = 1 - 1e-6 must not round to 1, nor its complement to nothing."""
    weight = torch.tensor([[13.8155], [0.0]], device=DEVICE)  # odds of 1e6
    head = Head(weight=weight, bias=None, module=None, vocab_size=2)
    hidden, ids = torch.ones(1, 1, device=DEVICE), torch.tensor([0], device=DEVICE)
    for cut in (-math.inf, math.log(0.99)):
        value = observed_logprob(head, hidden, ids, lowest_cut=cut)
        assert -value.item() == pytest.approx(1e-6, rel=1e-3)


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cut", [-math.inf, math.log(0.99)])
def test_nan_comes_out_in_its_row_alone(dtype, cut):
    head = make_head(dtype=dtype)
    hidden, ids = make_rows(head, 40)
    hidden[7, 4] = math.nan
    value = observed_logprob(head, hidden, ids, lowest_cut=cut)
    assert value.isnan().nonzero().tolist() == [[7]]


@needs_kernel
@pytest.mark.parametrize("first", [range(40), range(299, 220, -3)], ids=["default", "given"])
def test_rejected_rows_visit_the_first_ids_alone(first):
    head = make_head()
    hidden, ids = make_rows(head, 70)
    expected = full_logprob(head, hidden, ids)
    first_ids = torch.tensor(list(first), device=DEVICE)
    others = torch.ones(300, dtype=torch.bool, device=DEVICE)
    others[first_ids] = others[ids] = False
    head.weight[others] = math.nan
    given = None if first == range(40) else first_ids
    value = observed_logprob(head, hidden, ids, lowest_cut=CUT, first_ids=given)
    rejected = ~value.isnan()
    assert 10 < rejected.sum() < 60
    assert (expected[rejected] < CUT).all()
    assert (value[rejected] < CUT).all()


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_a_row_gets_depends_on_nothing_else(dtype):
    """Neither on the cut, nor on the first ids, nor on the other rows."""
    head = make_head(dtype=dtype)
    hidden, ids = make_rows(head, 70)
    exact = observed_logprob(head, hidden, ids)
    above = exact >= CUT
    assert above.any()
    for first in (None, torch.tensor([250, 1, 2], device=DEVICE)):
        cut = observed_logprob(head, hidden, ids, lowest_cut=CUT, first_ids=first)
        assert torch.allclose(cut[above], exact[above], rtol=1e-5, atol=0)
    fewer = observed_logprob(head, hidden[50:], ids[50:])
    assert torch.allclose(fewer, exact[50:], rtol=1e-5, atol=0)


@needs_kernel
def test_any_strides():
    head = make_head(D=80, bias=True)
    hidden, ids = make_rows(head, 33)
    expected = observed_logprob(head, hidden, ids, lowest_cut=CUT)
    bias = head.bias.repeat_interleave(3)[::3]
    transposed = Head(
        weight=head.weight.t().contiguous().t(), bias=bias, module=None, vocab_size=300
    )
    wide = torch.randn(33, 99, device=DEVICE)
    wide[:, 3:83] = hidden
    twice = ids.repeat_interleave(2)
    for h in (wide[:, 3:83], hidden.t().contiguous().t()):
        got = observed_logprob(transposed, h, twice[::2], lowest_cut=CUT)
        assert torch.allclose(got, expected, rtol=1e-5, atol=0)


@needs_kernel
def test_hidden_states_are_taken_to_the_dtype_of_the_weight():
    head = make_head(dtype=torch.bfloat16)
    _, ids = make_rows(head, 20)
    hidden = torch.randn(20, 16, device=DEVICE)
    got, expected = (observed_logprob(head, h, ids) for h in (hidden, hidden.bfloat16()))
    assert torch.equal(got, expected)


@needs_kernel
def test_infinite_logits_are_those_of_the_pytorch_path():
    head = make_head(bias=True)
    hidden, ids = make_rows(head, 70)
    head.bias[:45] = -math.inf  # the whole first tile: it can reject no row
    for cut in (-math.inf, CUT):
        got = observed_logprob(head, hidden, ids, lowest_cut=cut)
        above = full_logprob(head, hidden, ids) >= cut
        assert torch.allclose(got[above], exact_logprob(head, hidden, ids)[above], atol=2e-5)
    head = make_head(dtype=torch.float16)
    hidden, ids = make_rows(head, 70)
    hidden *= 6000  # some logits overflow
    got, expected = observed_logprob(head, hidden, ids), exact_logprob(head, hidden, ids)
    assert torch.allclose(got, expected, atol=0.3, equal_nan=True)
    assert expected.isnan().any()
    assert expected.isinf().any()
    assert expected.isfinite().any()


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_open_rows_are_listed_first_and_in_order(is_open):
    is_open = torch.tensor(is_open, device=DEVICE)
    rows, count = launch._list_rows(is_open)
    assert count.tolist() == [is_open.sum()]
    assert rows[: count.item()].tolist() == is_open.nonzero().squeeze(-1).tolist()
    assert sorted(rows.tolist()) == list(range(len(is_open)))


class NoHostWait(TorchDispatchMode):
    """Fails where the host would wait for a GPU to know a value or a size."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        by_mask = func in (aten.index.Tensor, aten.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        waits = by_mask or func in (
            aten._local_scalar_dense.default,
            aten.nonzero.default,
            aten.masked_select.default,
        )
        assert not waits, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@needs_kernel
@pytest.mark.parametrize("cut", [-math.inf, CUT])
def test_the_host_never_waits(cut):
    head = make_head(bias=True, softcap=9.0)
    hidden, ids = make_rows(head, 70)
    first_ids = torch.arange(50, device=DEVICE)
    for first in (None, first_ids):
        observed_logprob(head, hidden, ids, lowest_cut=cut, first_ids=first)  # compiles
        with NoHostWait():
            observed_logprob(head, hidden, ids, lowest_cut=cut, first_ids=first)
    for waits in (lambda: hidden[ids > 3], lambda: ids.max().item(), lambda: ids.nonzero()):
        with NoHostWait(), pytest.raises(AssertionError, match="waits for the device"):
            waits()


@needs_kernel
def test_no_rows():
    value = observed_logprob(make_head(), torch.zeros(0, 16), torch.zeros(0).long())
    assert value.shape == (0,)
    assert value.dtype == torch.float32


def test_a_head_without_a_weight_is_refused():
    head = Head(weight=None, bias=None, module=torch.nn.Linear(4, 9), vocab_size=9)
    with pytest.raises(ValueError, match=r"use_kernel: .*no plain weight.*leave prior\.use_k"):
        observed_logprob(head, torch.zeros(1, 4), torch.zeros(1).long())


def test_other_dtypes_are_refused():
    head = make_head(dtype=torch.float64)
    with pytest.raises(ValueError, match=r"float32, bfloat16 or float16, got torch\.float64"):
        observed_logprob(head, torch.zeros(1, 16), torch.zeros(1).long())


def test_a_device_without_the_kernel_is_refused(monkeypatch):
    monkeypatch.setattr(launch, "is_available", lambda device: False)
    with pytest.raises(ValueError, match=rf"needs triton and .*got a prior on {DEVICE.type}"):
        observed_logprob(make_head(), torch.zeros(1, 16), torch.zeros(1).long())


@needs_kernel
@pytest.mark.parametrize("shape", [(0,), (2, 3)])
def test_first_ids_must_be_a_vector(shape):
    first_ids = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"first_ids must be a vector of at least one id, got"):
        observed_logprob(
            make_head(), torch.zeros(1, 16), torch.zeros(1).long(), first_ids=first_ids
        )


def test_a_cpu_has_no_kernel_but_by_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not is_available(torch.device("cpu"))


def test_the_import_needs_no_triton():
    code = (
        "import sys, torch, toedit_collate.head.kernels as kernels\n"
        "assert 'toedit_collate.head.kernels.triton_kernels' not in sys.modules\n"
        "kernels.launch.importlib.util.find_spec = lambda name: None\n"
        "assert not kernels.is_available(torch.device('cuda'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def llama_sized():
    """A head as large as Llama-3-8B's, and rows whose P runs from 0 to nearly 1."""
    n, D, V = 8192, 4096, 128_256
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.empty(V, D, dtype=torch.bfloat16, device="cuda")
    weight.normal_(std=D**-0.5, generator=generator)
    ids = torch.randint(0, V, (n,), device="cuda", generator=generator)
    # The observed logit is about `size`, the sum of the others about log V + size**2 / 2D.
    size = torch.rand(n, 1, device="cuda", generator=generator) * 25
    hidden = (size * weight[ids].float()).bfloat16()
    return Head(weight=weight, bias=None, module=None, vocab_size=V), hidden, ids


@pytest.mark.gpu
@needs_gpu
@needs_kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"softcap": 30.0, "scale": 1.5}], ids=str)
@pytest.mark.parametrize("threshold", [None, 0.99, 0.1])
def test_a_large_vocabulary(llama_sized, threshold, options, dtype):
    head, hidden, ids = llama_sized
    weight, hidden = head.weight.to(dtype), hidden.to(dtype)
    head = Head(weight=weight, bias=None, module=None, vocab_size=head.vocab_size, **options)
    cut = -math.inf if threshold is None else math.log(threshold)
    expected = exact_logprob(head, hidden, ids)
    observed_logprob(head, hidden[:1000], ids[:1000], lowest_cut=cut)  # compiles

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = observed_logprob(head, hidden, ids, lowest_cut=cut)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert torch.cuda.max_memory_allocated() - before <= 64 * 2**20

    above = expected >= cut
    assert 500 < above.sum() <= len(above)
    error = (got - expected)[above].abs()
    assert (error < 1e-3).float().mean() > 0.99
    assert error.max() < 0.3
    assert ((got >= cut) == above).float().mean() > 0.999
    assert (got >= expected - 0.3).all()
