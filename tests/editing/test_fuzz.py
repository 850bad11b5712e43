"""Any batch, any policy: `edit_tokens` beside the slow reference, a cache and a journal.

A few cases in the normal suite; thousands with `pytest -m slow`.
"""

import tempfile
from collections import Counter

import pytest
import torch
from conftest import VOCAB_SIZE, likely_ids, make_llama, make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import batches
from sameness import assert_same_edit

from toedit_collate import DecisionCache, EditPolicy, Journal, Prior, edit_tokens
from toedit_collate.editing.with_journal import edit_with_journal
from toedit_collate.tokens.token_batch import TokenBatch

PRIORS = {
    "with a tokenizer": Prior(make_llama(3), make_tokenizer()),
    "without": Prior(make_llama(4)),
}
POOL = {name: likely_ids(prior.model, 1, 64, seed=7)[0] for name, prior in PRIORS.items()}
FIELDS = ("input_ids", "labels", "tokens", "selected", "changed", "dropped", "attention_mask",
          "position_ids", "source")  # fmt: skip
SEEN = Counter()

# Thresholds that no probability of these models lies on.
probabilities = st.sampled_from([0.003, 0.0503, 0.303, 0.5003, 0.7003, 0.9001, 0.98999])


@st.composite
def policies(draw):
    region = draw(st.sampled_from(["above", "below", "all", "none"]))
    threshold = draw(probabilities)
    lower = [p for p in (1e-4, 0.0071, 0.2503) if region in ("all", "none") or p < threshold]
    drop = draw(st.sampled_from([None, None, *lower]))
    target = draw(st.sampled_from(["both", "inputs", "labels"])) if drop is None else "both"
    return EditPolicy(
        region=region,
        threshold=threshold,
        drop_below=drop,
        target=target,
        scope="loss" if target == "labels" else draw(st.sampled_from(["loss", "all"])),
        sampler=draw(st.sampled_from(["top_k", "top_p", "rejection"])),
        top_k=draw(st.sampled_from([2, 5, 64, VOCAB_SIZE])),
        top_p=draw(st.sampled_from([0.3, 0.9501, 1.0])),
        temperature=draw(st.sampled_from([0.5, 1.0, 1.5, 3.0])),
        exclude_original=draw(st.booleans()),
        protect_special=draw(st.booleans()),
        protected_token_ids=tuple(draw(st.lists(st.integers(0, 319), max_size=3))),
        seed=draw(st.integers(0, 2**64 - 1)),
        redraw=draw(st.sampled_from(["epoch", "never"])),
    )


@st.composite
def cases(draw):
    """A prior, a policy, and the arguments of `edit_tokens`."""
    name = draw(st.sampled_from(sorted(PRIORS)))
    policy = draw(policies())
    places, mask, positions = draw(batches())
    shift = draw(st.integers(0, 63))
    ids = POOL[name][(places + shift) % 64]
    labels = None
    if policy.target != "both" or draw(st.booleans()):
        kept = draw(st.lists(st.booleans(), min_size=ids.numel(), max_size=ids.numel()))
        labels = torch.where(torch.tensor(kept).view_as(ids), ids, -100)
    kind = draw(st.sampled_from([torch.int64, torch.int64, torch.int32]))
    if mask is not None and int(mask.max()) <= 1:
        mask = mask.to(draw(st.sampled_from([torch.int64, torch.bool, torch.float32])))
    arguments = {"attention_mask": mask, "position_ids": positions, "labels": labels}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    arguments |= {"epoch": draw(st.integers(0, 3)), "generation": draw(st.integers(0, 2))}
    return name, policy, ids.to(kind), arguments


def check(case):
    name, policy, ids, arguments = case
    prior = PRIORS[name]
    spared = torch.isin(ids, torch.tensor(policy.protected_token_ids, dtype=ids.dtype))
    before = [ids.clone(), *(v.clone() for v in arguments.values() if torch.is_tensor(v))]
    plain = assert_same_edit(prior, policy, ids, protected=spared, **arguments)
    after = [ids, *(v for v in arguments.values() if torch.is_tensor(v))]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert plain.input_ids.dtype == ids.dtype
    scored = edit_tokens(prior, ids, policy=policy, return_logprob=True, **arguments)
    assert_same(scored, plain)
    if not (policy.region == "all" and policy.sampler == "rejection"):
        cache = DecisionCache()
        for _ in range(2):  # filled, and read
            cached = edit_tokens(prior, ids, policy=policy, cache=cache, **arguments)
            assert_same(cached, plain)
    if ids.dtype == torch.int64:
        check_journal(prior, policy, ids, arguments)
    SEEN.update(
        cases=1, selected=int(plain.selected.sum()), changed=int(plain.changed.sum()),
        dropped=int(plain.dropped.sum()),
    )  # fmt: skip


def check_journal(prior, policy, ids, arguments):
    """With a journal documents are drawn for once: as in epoch 0 of the prior's generation."""
    batch = {n: arguments.get(n) for n in ("attention_mask", "position_ids", "labels")}
    plain = edit_tokens(prior, ids, policy=policy, **batch)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(folder)
        for _ in range(2):  # edited, and replayed
            source = TokenBatch.of(
                ids, batch["attention_mask"], batch["position_ids"], batch["labels"]
            )
            done = edit_with_journal(prior, journal, source, policy=policy, step=0)
            assert_same(done.final, plain, but=("selected",))


def assert_same(ours, theirs, but=()):
    for name in FIELDS:
        got, expected = getattr(ours, name), getattr(theirs, name)
        if name in but:
            continue
        assert (got is None) == (expected is None), name
        assert got is None or torch.equal(got, expected), name


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@settings(max_examples=12, deadline=None, suppress_health_check=QUIET)
@given(cases())
def test_a_few_cases(case):
    check(case)


@settings(max_examples=3000, deadline=None, suppress_health_check=QUIET)
@given(cases())
def check_thousands(case):
    check(case)


@pytest.mark.slow
def test_thousands_of_cases():
    """They are of all kinds, too; prints what was met (`-s` shows it)."""
    SEEN.clear()
    check_thousands()
    print(dict(SEEN))
    assert min(SEEN[name] for name in ("cases", "selected", "changed", "dropped")) > 500
