"""The kernel against PyTorch: on a GPU, or else in triton's interpreter.

On a CPU: `TRITON_INTERPRET=1 pytest tests/head/test_kernels.py`. Without triton, most of it skips.
"""

import math

import pytest
import torch

from toedit_collate.head import kernels
from toedit_collate.head.logprob import exact_logprob, measure_competitors, score_observed
from toedit_collate.head.projection import Head

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
needs_kernel = pytest.mark.skipif(
    not kernels.is_available(DEVICE), reason="needs triton, and a GPU or TRITON_INTERPRET=1"
)
needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="no GPU")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_head(V=3000, D=16, *, dtype=torch.float32, **options):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(V, D, generator=generator) * (7 / math.sqrt(D))
    return Head(weight.to(DEVICE, dtype), **options)


def make_rows(head, n):
    """Hidden states and observed ids, of which half are the most probable ones."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, head.weight.shape[1], generator=generator).to(head.weight)
    ids = torch.randint(0, head.vocab_size, (n,), generator=generator).to(DEVICE)
    own_choice = (torch.rand(n, generator=generator) < 0.5).to(DEVICE)
    return hidden, torch.where(own_choice, head.logits(hidden).argmax(-1), ids)


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 17, 2048, 2900])
def test_tiles_add_up_to_the_log_sum_exp_of_the_others(width, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(9, 5000, generator=generator) * 9).to(DEVICE, dtype)
    ids = torch.tensor([0, 1, 16, 17, 2048, 2899, 2900, 4999, 300], device=DEVICE)
    others = torch.full((9,), -math.inf, device=DEVICE)
    stop = max(width, 34) // width * width + width  # a few tiles of narrow ones
    for start in range(0, stop, width):
        kernels.add_tile(others, logits[:, start : start + width], ids - start)
    wanted = logits[:, :stop].double()
    wanted = wanted.masked_fill(
        torch.arange(wanted.shape[1], device=DEVICE) == ids[:, None], -math.inf
    )
    assert (others.double() - wanted.logsumexp(-1)).abs().max() < 1e-5


@needs_kernel
def test_what_is_no_number_comes_out_as_from_pytorch():
    inf, nan = math.inf, math.nan
    tile = torch.tensor(
        [[1, 2, inf], [1, nan, 2], [-inf, -inf, -inf], [-inf, 0, 1], [inf, 1, -inf], [inf, inf, 1]],
        device=DEVICE,
    )
    others = torch.full((6,), -inf, device=DEVICE)
    own = torch.tensor([7, 7, 7, 7, 0, -1], device=DEVICE)
    for _ in range(2):
        kernels.add_tile(others, tile, own)
    wanted = tile.clone()
    wanted[4, 0] = -inf
    wanted = torch.cat([wanted, wanted], 1).logsumexp(-1)
    assert torch.allclose(others, wanted, equal_nan=True)


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"softcap": 30.0, "scale": 1.5}], ids=str)
def test_log_p_and_its_decisions_are_those_of_the_tiles(options, dtype):
    head = make_head(dtype=dtype, **options)
    hidden, ids = make_rows(head, 70)
    expected = exact_logprob(head, hidden, ids)
    assert torch.allclose(exact_logprob(head, hidden, ids, with_kernel=True), expected, atol=1e-4)
    cut = math.log(0.3)
    scores = score_observed(
        head, hidden, ids, lowest_cut=cut, competitors=measure_competitors(head, hidden),
        with_kernel=True,
    )  # fmt: skip
    clear = (expected - cut).abs() > 1e-3
    assert torch.equal((scores.logprob >= cut)[clear], (expected >= cut)[clear])
    above = expected >= cut
    assert 5 < above.sum() < 65
    assert torch.allclose(scores.logprob[above], expected[above], atol=1e-4)


def test_a_device_without_the_kernel_is_refused(monkeypatch):
    monkeypatch.setattr(kernels, "is_available", lambda device: False)
    with pytest.raises(ValueError, match=rf"needs triton and .*got a prior on {DEVICE.type}"):
        kernels.check_usable(make_head())


def test_a_cpu_has_no_kernel_but_by_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not kernels.is_available(torch.device("cpu"))


@pytest.mark.gpu
@needs_gpu
@needs_kernel
@pytest.mark.parametrize("options", [{}, {"softcap": 30.0, "scale": 1.5}], ids=str)
def test_a_large_vocabulary_takes_little_memory_and_no_wait(options):
    """A head as large as Llama-3-8B's, and rows whose P runs from 0 to nearly 1."""
    n, D, V = 8192, 4096, 128_256
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.empty(V, D, dtype=torch.bfloat16, device="cuda")
    weight.normal_(std=D**-0.5, generator=generator)
    ids = torch.randint(0, V, (n,), device="cuda", generator=generator)
    # The observed logit is about `size`, the sum of the others about log V + size**2 / 2D.
    size = torch.rand(n, 1, device="cuda", generator=generator) * 25
    hidden = (size * weight[ids].float()).bfloat16()
    head = Head(weight, **options)
    expected = exact_logprob(head, hidden, ids)
    exact_logprob(head, hidden[:1000], ids[:1000], with_kernel=True)  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = exact_logprob(head, hidden, ids, with_kernel=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before <= 192 * 2**20
    assert (got - expected).abs().max() < 1e-3
    assert 500 < (expected >= math.log(0.1)).sum() < n
