"""Any batch and policy: `edit_tokens` against the reference, other paths against `edit_tokens`.

A few cases in the normal suite; thousands with `pytest -m slow`.
"""

import tempfile
import zlib
from collections import Counter
from pathlib import Path

import pytest
import reference
import torch
from conftest import VOCAB_SIZE, likely_ids, make_llama, make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import batches
from sameness import assert_same_edit

from toedit_collate import (
    DecisionCache,
    EditPolicy,
    Journal,
    Prior,
    ToEditCollator,
    edit_tokens,
)
from toedit_collate.editing.with_journal import edit_with_journal
from toedit_collate.tokens.documents import find_documents
from toedit_collate.tokens.protection import rule_mask
from toedit_collate.tokens.token_batch import TokenBatch

SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32}
PRIORS = {
    "with a tokenizer": Prior(make_llama(3, **SMALL), make_tokenizer()),
    "without": Prior(make_llama(4, **SMALL)),
    "in 16 bits": Prior(make_llama(5, **SMALL).to(torch.bfloat16), make_tokenizer()),
}
RULES = ["numbers", "names,urls", "code,latex", "regex:[aeiou]", "regex:(?s)t.{1,3}e,numbers"]
POOL = {name: likely_ids(prior.model, 1, 64, seed=7)[0] for name, prior in PRIORS.items()}
FIELDS = ("input_ids", "labels", "tokens", "selected", "changed", "dropped", "attention_mask",
          "position_ids", "source")  # fmt: skip
SEEN = Counter()
WAYS = ["scored", "cache", "journal", "collator"]

# Thresholds that no probability of these models lies on.
probabilities = st.sampled_from([0.003, 0.0503, 0.303, 0.5003, 0.7003, 0.9001, 0.98999])


def thirds(ids, tokenizer):
    return ids % 3 == 1


@st.composite
def policies(draw, with_rules):
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
        sampler=draw(st.sampled_from(["top_k", "top_p", "full"])),
        top_k=draw(st.sampled_from([2, 5, 64, VOCAB_SIZE])),
        top_p=draw(st.sampled_from([0.3, 0.9501, 1.0])),
        temperature=draw(st.sampled_from([0.5, 1.0, 1.5, 3.0])),
        exclude_original=draw(st.booleans()),
        protect_special=draw(st.booleans()),
        protected_token_ids=tuple(draw(st.lists(st.integers(0, 319), max_size=3))),
        protect=draw(st.sampled_from([None, None, None, thirds, *(RULES if with_rules else [])])),
        seed=draw(st.integers(0, 2**64 - 1)),
        redraw=draw(st.sampled_from(["epoch", "never"])),
    )


@st.composite
def cases(draw):
    """A prior, a policy, and the arguments of `edit_tokens`."""
    name = draw(st.sampled_from(sorted(PRIORS)))
    policy = draw(policies(with_rules=PRIORS[name].tokenizer is not None))
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
    # Not drawn: hypothesis likes the first of a list.
    way = WAYS[zlib.crc32(repr([policy.record(), ids.tolist()]).encode()) % len(WAYS)]
    return name, policy, ids.to(kind), arguments, way


def check(case):
    name, policy, ids, arguments, way = case
    prior = PRIORS[name]
    spared = spared_by(policy, ids, arguments, prior.tokenizer)
    before = [ids.clone(), *(v.clone() for v in arguments.values() if torch.is_tensor(v))]
    if name == "in 16 bits":
        plain = edit_tokens(prior, ids, policy=policy, **arguments)
        check_rounded(prior, policy, ids, arguments, plain, spared)
    else:
        plain = assert_same_edit(prior, policy, ids, protected=spared, **arguments)
    after = [ids, *(v for v in arguments.values() if torch.is_tensor(v))]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert plain.input_ids.dtype == ids.dtype
    globals()[f"check_{way}"](name, policy, ids, arguments, plain)
    SEEN.update(
        {f"cases {name}": 1, way: 1, f"protect={policy.protect is not None}": 1},
        cases=1, selected=int(plain.selected.sum()), changed=int(plain.changed.sum()),
        dropped=int(plain.dropped.sum()),
    )  # fmt: skip


def spared_by(policy, ids, arguments, tokenizer):
    """What `protected_token_ids` and `protect` spare; rules see one document at a time."""
    spared = torch.isin(ids, torch.tensor(policy.protected_token_ids, dtype=ids.dtype))
    if callable(policy.protect):
        spared |= policy.protect(ids, tokenizer)
    elif policy.protect is not None:
        for document in documents_of(ids, arguments):
            rows, columns = map(list, zip(*document, strict=True))
            alone = ids[rows, columns].long()
            there = find_documents(alone.unsqueeze(0), None, None)
            spared[rows, columns] |= rule_mask(policy.protect, alone, there, tokenizer)
    return spared


def documents_of(ids, arguments):
    mask = arguments.get("attention_mask")
    return reference.documents_of(ids, mask, arguments.get("position_ids"))


def check_rounded(prior, policy, ids, arguments, plain, spared):
    """Logits in 16 bits depend on what else is in a pass, so its own log P say what is right."""
    logprob = edit_tokens(prior, ids, policy=policy, return_logprob=True, **arguments).logprob
    first = torch.ones_like(spared)
    for document in documents_of(ids, arguments):
        for b, t in document[1:]:
            first[b, t] = False
    assert torch.equal(logprob.isnan(), first)
    may = ~first & ~spared
    labels = arguments.get("labels")
    if policy.scope == "loss" and labels is not None:
        may &= labels != -100
    if policy.protect_special:
        may &= ~torch.isin(ids, torch.tensor(sorted(prior.special_ids)))
    p = logprob.exp()
    right = {
        "above": p >= policy.threshold, "below": p <= policy.threshold,
        "all": torch.ones_like(may), "none": torch.zeros_like(may),
    }[policy.region]  # fmt: skip
    low = p < (policy.drop_below or 0)
    clear = (p - policy.threshold).abs().gt(1e-3) | first
    clear &= (p - (policy.drop_below or -1)).abs().gt(1e-3) | first
    assert torch.equal((plain.selected | plain.dropped)[~may], torch.zeros_like(may)[~may])
    assert torch.equal(plain.dropped[clear], (low & may)[clear])
    assert torch.equal(plain.selected[clear], (right & may & ~low)[clear])
    assert not (plain.changed & ~plain.selected).any()


def check_scored(name, policy, ids, arguments, plain):
    prior = PRIORS[name]
    scored = edit_tokens(prior, ids, policy=policy, return_logprob=True, **arguments)
    assert_same(scored, plain)


def check_cache(name, policy, ids, arguments, plain):
    """Filled, and read; then by a run that has no prior, from what was written."""
    prior = PRIORS[name]
    if policy.region == "all" and policy.sampler == "full":  # not decided beforehand
        return
    with tempfile.TemporaryDirectory() as folder:
        with DecisionCache(folder) as cache:
            first = edit_tokens(prior, ids, policy=policy, cache=cache, **arguments)
            again = edit_tokens(prior, ids, policy=policy, cache=cache, **arguments)
        assert_same(again, first)
        if name != "in 16 bits":  # a document that is there twice is decided for once
            assert_same(first, plain)
        if list(Path(folder).rglob("*.safetensors")) and prior.tokenizer is None:
            stand_in = DecisionCache(folder).prior(policy)
            read = edit_tokens(
                stand_in, ids, policy=policy, cache=DecisionCache(folder), **arguments
            )
            assert_same(read, first)


def check_journal(name, policy, ids, arguments, plain):
    """With a journal documents are drawn for once: as in epoch 0 of the prior's generation."""
    prior = PRIORS[name]
    batch = {n: arguments.get(n) for n in ("attention_mask", "position_ids", "labels")}
    ids = ids.long()
    plain = edit_tokens(prior, ids, policy=policy, **batch)
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for _ in range(2):  # edited, and replayed from the disk
            with Journal(folder) as journal:
                source = TokenBatch.of(
                    ids, batch["attention_mask"], batch["position_ids"], batch["labels"]
                )
                done = edit_with_journal(prior, journal, source, policy=policy, step=0)
            found.append(done.final)
            del journal
        assert_same(found[1], found[0], but=("selected",))
        if name != "in 16 bits":
            assert_same(found[0], plain, but=("selected",))


def check_collator(name, policy, ids, arguments, plain):
    """Whose rows end at a multiple, also where they have shrunk."""
    prior = PRIORS[name]
    arguments = {n: v for n, v in arguments.items() if n not in ("epoch", "generation")}
    plain = edit_tokens(prior, ids, policy=policy, **arguments)

    class Base:
        pad_to_multiple_of = 4

        def __call__(self, features):
            return {"input_ids": ids, **arguments}

    batch = ToEditCollator(prior, policy, base_collator=Base())([1])
    edited = dict(batch.items())
    width = plain.input_ids.shape[1]
    T = edited["input_ids"].shape[1]
    assert width == T if plain.source is None else width <= T < width + 4 and T % 4 == 0
    for key in {"input_ids", "labels"} & set(edited):  # padded on either side
        whole, expected = edited[key], getattr(plain, key)
        assert torch.equal(whole[:, :width], expected) or torch.equal(whole[:, -width:], expected)


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
    assert min(SEEN[name] for name in (*WAYS, "selected", "changed", "dropped")) > 500
