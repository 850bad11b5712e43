"""The path of a GPU, on a CPU, by tensors that can't be read (see also `test_pretend_gpu.py`)."""

import sys

import pytest
import torch
from conftest import likely_ids, make_llama, make_tokenizer
from torch.utils._pytree import tree_leaves

from toedit_collate import EditPolicy, Prior, ToEditCollator, edit_tokens
from toedit_collate.head import predictions

READS = {
    torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu,
    torch.Tensor.nonzero, torch.nonzero, torch.masked_select, torch.Tensor.masked_select,
    torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__index__,
    torch.Tensor.unique, torch.equal, torch.Tensor.equal, torch.Tensor.to_sparse,
}  # fmt: skip
MASKABLE = {torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.index_put_}


class Far(torch.Tensor):
    """A tensor as on a GPU: to read it is an error, but through `fetch`."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in READS:
            raise AssertionError(f"{func.__name__} waits for the device")
        if func in MASKABLE:
            index = args[1:2] if func is torch.Tensor.__setitem__ else args[1:]
            masks = [x for x in tree_leaves(index) if isinstance(x, Far) and x.dtype == torch.bool]
            if masks and masks[0].dim():
                raise AssertionError(f"a mask in {func.__name__} waits for the device")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.fixture
def waits(monkeypatch):
    """Sends become far, fetches near; a list of how many far tensors each fetch brought."""
    waits = []

    def fetch(*tensors):
        far = sum(isinstance(t, Far) for t in tensors)
        if far:
            waits.append(far)
        return [None if t is None else t.as_subclass(torch.Tensor) for t in tensors]

    def send(tensor, device):
        return tensor.as_subclass(Far)

    ours = [m for name, m in sys.modules.items() if name.startswith("toedit_collate.")]
    assert any(name.endswith("with_cache") for name in sys.modules)
    for module in ours:
        for name, fake in (
            ("fetch", fetch), ("send", send), ("on_host", lambda t: not isinstance(t, Far)),
        ):  # fmt: skip
            if hasattr(module, name):
                monkeypatch.setattr(module, name, fake)
    return waits


POLICIES = {
    "paper": EditPolicy(scope="all"),
    "authors' script": EditPolicy.reference_code(),
    "others": EditPolicy(threshold=0.6, exclude_original=True),
    "half, full": EditPolicy(threshold=0.5, sampler="full", temperature=1.3),
    "reversed": EditPolicy(region="below", threshold=0.1, top_k=5),
    "drop": EditPolicy(threshold=0.7, drop_below=1e-4, temperature=2.0),
}


def test_the_far_edit_is_the_near_one(request):
    ids = likely_ids(make_llama(), 6, 40)
    near = {n: edit_tokens(Prior(make_llama()), ids, policy=p) for n, p in POLICIES.items()}
    request.getfixturevalue("waits")
    for name, policy in POLICIES.items():
        far = edit_tokens(Prior(make_llama()), ids, policy=policy)
        for field in ("input_ids", "selected", "changed", "dropped"):
            got = getattr(far, field).as_subclass(torch.Tensor)
            assert torch.equal(got, getattr(near[name], field)), (name, field)


def test_a_gpu_draws_for_the_tokens_that_a_cpu_draws_for(request, monkeypatch):
    """One more wait, where many tokens are open: for the exact P."""
    ids, policy = likely_ids(make_llama(), 6, 40), EditPolicy(threshold=0.5, temperature=1.3)
    rows = []
    draw = predictions.draw_tokens
    monkeypatch.setattr(predictions, "draw_tokens", lambda *a: rows.append(len(a[2])) or draw(*a))
    edit_tokens(Prior(make_llama()), ids, policy=policy)
    near, rows = sum(rows), []
    waits, counts = request.getfixturevalue("waits"), []
    for few in (predictions.FEW_DRAWS, 0):
        monkeypatch.setattr(predictions, "FEW_DRAWS", few)
        prior = Prior(make_llama())
        edit_tokens(prior, ids, policy=policy)  # measures the likely competitors
        waits.clear()
        rows.clear()
        edit_tokens(prior, ids, policy=policy)
        counts.append((len(waits), sum(rows)))
    (few_waits, few_draws), (more_waits, exact_draws) = counts
    assert few_draws > near > 0
    assert (more_waits, exact_draws) == (few_waits + 1, near)


def test_counts_are_fetched_when_they_are_asked_for(waits):
    rows = [{"input_ids": row.tolist()} for row in likely_ids(make_llama(), 6, 40)]
    collator = ToEditCollator(Prior(make_llama()), tokenizer=make_tokenizer())
    for _ in range(4):
        collator(rows).to("cpu")
    waits.clear()
    assert collator.stats["batches"] == 4
    assert len(waits) == 1  # for all counts at once


def test_a_read_is_told():
    """The tests above can fail."""
    far = torch.ones(3).as_subclass(Far)
    for read in (
        lambda: far.sum().item(), lambda: far[far > 0], lambda: bool(far.any()),
        lambda: far.nonzero(), lambda: far.clone().__setitem__(far > 0, 1.0),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match="waits for the device"):
            read()
