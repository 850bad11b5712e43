"""The edit with a cache of decisions against the edit without."""

import pytest
import torch
from conftest import likely_ids, make_llama, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_edit_tokens import POLICIES, LargestTensor, arrange
from trainees import QUIET, dataset, documents, make_trainee
from transformers import Trainer, TrainingArguments

from toedit_collate import EditPolicy, Journal, Prior, ToEditCallback, ToEditCollator, edit_tokens
from toedit_collate.head import projection
from toedit_collate.stores.cache import DecisionCache

NUCLEUS = EditPolicy(threshold=0.6, sampler="top_p", top_p=0.97, temperature=1.5)
ALL_POLICIES = {**POLICIES, "nucleus": NUCLEUS}


def assert_same(got, expected):
    for name in ("input_ids", "labels", "attention_mask", "selected", "changed", "dropped"):
        one, other = getattr(got, name), getattr(expected, name)
        assert (one is None and other is None) or torch.equal(one, other), name
    assert torch.equal(got.scored, expected.scored)


class Counting(Prior):
    """Counts the tokens that it scores."""

    num_scored = 0

    def predictive_states(self, documents, tokens, where, bos_id=None):
        self.num_scored += len(where)
        return super().predictive_states(documents, tokens, where, bos_id)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL_POLICIES)
def test_every_epoch_is_edited_as_without(name, dtype):
    prior = Counting(make_llama().to(dtype), make_tokenizer())
    ids = likely_ids(make_llama(), 6, 40)
    mask = torch.ones_like(ids)
    mask[2, 25:] = mask[4, 1:] = 0
    labels = torch.where(mask == 1, ids, -100)
    labels[:, :5] = -100
    arguments = {
        "attention_mask": mask, "labels": labels, "policy": ALL_POLICIES[name], "generation": 2,
    }  # fmt: skip
    cache = DecisionCache()
    for epoch in range(4):
        expected = edit_tokens(prior, ids, **arguments, epoch=epoch)
        before = prior.num_scored
        got = edit_tokens(prior, ids, **arguments, epoch=epoch, cache=cache)
        assert_same(got, expected)
        assert (prior.num_scored > before) == (epoch == 0)
    assert got.selected.any() or got.dropped.any()


_PRIOR = Prior(make_llama())
_POOL = likely_ids(make_llama(), 12, 25)


@settings(max_examples=30, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=5), min_size=2, max_size=5),
    layout=st.sampled_from(["left", "right", "packed"]),
    name=st.sampled_from(["half", "reversed", "others", "nucleus"]),
)
def test_known_and_new_documents_in_one_batch(batches, layout, name):
    """In any order, some of them twice in a batch."""
    cache, policy = DecisionCache(), ALL_POLICIES[name]
    for epoch, numbers in enumerate(batches):
        texts = [_POOL[n, : 5 + 2 * n] for n in numbers]
        arguments, _ = arrange(texts, layout)
        expected = edit_tokens(_PRIOR, policy=policy, epoch=epoch, **arguments)
        got = edit_tokens(_PRIOR, policy=policy, epoch=epoch, cache=cache, **arguments)
        assert_same(got, expected)


@pytest.mark.parametrize("name", [n for n in ALL_POLICIES if n != "half"])
def test_the_logits_are_never_whole(name, monkeypatch):
    """But with sampler="full", whose candidates are the whole vocabulary."""
    model = make_llama(seed=3, vocab_size=4000)
    ids = torch.randint(5, 4000, (8, 64))
    prior = Prior(model)
    assert prior.fingerprint  # looks at the weights themselves, once
    monkeypatch.setattr(projection, "MAX_BLOCK_BYTES", 18 * 4 * 4000)  # 18 rows
    with LargestTensor(model) as mode:
        edit_tokens(prior, ids, policy=ALL_POLICIES[name], cache=DecisionCache())
    assert mode.largest < 0.05 * 8 * 64 * 4000


def test_other_labels_are_other_decisions():
    """The same tokens with another prompt are decided anew."""
    prior, cache = Counting(make_llama()), DecisionCache()
    ids = likely_ids(make_llama(), 1, 40)
    for start in (5, 20, 5):
        labels = torch.where(torch.arange(40) >= start, ids, -100)
        expected = edit_tokens(prior, ids, labels=labels, policy=POLICIES["half"])
        got = edit_tokens(prior, ids, labels=labels, policy=POLICIES["half"], cache=cache)
        assert_same(got, expected)
    assert cache.num_documents == 2


def test_other_weights_or_another_policy_invalidate(tmp_path):
    cache = DecisionCache(tmp_path / "cache")
    prior = Counting(make_llama())
    ids = likely_ids(make_llama(), 3, 30)

    def passes(policy):
        before = prior.num_scored
        expected = edit_tokens(prior, ids, policy=policy)
        mine = prior.num_scored
        assert_same(edit_tokens(prior, ids, policy=policy, cache=cache), expected)
        return prior.num_scored > mine >= before

    assert passes(POLICIES["half"])
    assert not passes(POLICIES["half"].replace(seed=7, redraw="never"))  # matters to draws alone
    assert passes(POLICIES["half"].replace(threshold=0.6))
    make_llama(seed=1).save_pretrained(tmp_path / "next")
    prior.swap(tmp_path / "next")
    assert passes(POLICIES["half"])
    assert not passes(POLICIES["half"])
    prior.set_tokenizer(make_tokenizer())
    assert passes(POLICIES["half"])


def test_with_return_logprob_all_is_scored():
    prior, cache = Counting(make_llama()), DecisionCache()
    ids = likely_ids(make_llama(), 2, 30)
    edit_tokens(prior, ids, cache=cache)
    result = edit_tokens(prior, ids, cache=cache, return_logprob=True)
    assert result.logprob[:, 1:].isfinite().all()


def test_a_batch_without_editable_tokens_asks_for_nothing(tmp_path):
    cache = DecisionCache(tmp_path)
    prior = Prior(make_llama(), make_tokenizer())
    ids = likely_ids(make_llama(), 2, 30)
    edit_tokens(prior, ids, cache=cache)
    stand_in = cache.prior()
    stand_in.set_tokenizer(make_tokenizer())
    result = edit_tokens(stand_in, ids, labels=torch.full_like(ids, -100), cache=cache)
    assert not result.scored.any()
    other = ids.flip(1)
    with pytest.raises(ValueError, match=r"not in the decision cache.*toedit apply --cache"):
        edit_tokens(stand_in, other, cache=cache)


def train(tmp_path, name, prior, cache, **settings):
    """What the Trainer's model was given, by step."""
    texts = documents(12)
    seen = []

    class Seeing(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.append(inputs["input_ids"].tolist())
            return super().training_step(model, inputs, *args, **kwargs)

    collator = ToEditCollator(prior, NUCLEUS, tokenizer=make_tokenizer(), cache=cache, **settings)
    arguments = TrainingArguments(str(tmp_path / name), **{**QUIET, "num_train_epochs": 3})
    trainer = Seeing(
        make_trainee(), arguments, collator, dataset(texts), callbacks=[ToEditCallback(collator)],
    )  # fmt: skip
    trainer.train()
    return seen, collator.stats


def test_a_training_run_without_its_prior(tmp_path):
    """The first run fills the cache; the second needs no prior, and trains on the same."""
    plain, _ = train(tmp_path, "plain", Prior(make_llama(), make_tokenizer()), None)
    prior = Counting(make_llama(), make_tokenizer())
    with DecisionCache(tmp_path / "cache") as cache:
        first, stats = train(tmp_path, "first", prior, cache)
    assert first == plain
    assert prior.num_scored * 3 == stats["scored"]
    assert stats["changed"] > 0
    reopened = DecisionCache(tmp_path / "cache")
    second, again = train(tmp_path, "second", reopened.prior(NUCLEUS), reopened)
    assert second == plain
    assert {k: again[k] for k in ("scored", "selected", "changed")} == {
        k: stats[k] for k in ("scored", "selected", "changed")
    }


def test_a_stand_in_is_never_swapped(tmp_path):
    cache = DecisionCache(tmp_path / "cache")
    edit_tokens(Prior(make_llama(), make_tokenizer()), torch.arange(5, 25)[None], cache=cache)
    collator = ToEditCollator(cache.prior(), tokenizer=make_tokenizer(), cache=cache)
    trainer = Trainer(
        make_trainee(), TrainingArguments(str(tmp_path / "run"), **QUIET), collator,
        dataset(documents(4)), callbacks=[ToEditCallback(collator, refresh="epoch")],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"refresh swaps the prior's weights.*decision cache"):
        trainer.train()


def test_a_journal_and_a_cache(tmp_path):
    ids = likely_ids(make_llama(), 6, 40)
    edited = {}
    for name, cache in (("with", DecisionCache()), ("without", None)):
        collator = ToEditCollator(
            Counting(make_llama()), NUCLEUS, base_collator=dict, cache=cache,
            journal=Journal(tmp_path / name),
        )  # fmt: skip
        edited[name] = [collator({"input_ids": ids})["input_ids"] for _ in range(2)]
    assert torch.equal(edited["with"][0], edited["without"][0])
    assert torch.equal(edited["with"][1], edited["with"][0])


def test_the_collator_refuses_what_is_no_cache(tmp_path):
    with pytest.raises(TypeError, match=r"cache must be a DecisionCache, got str.*DecisionCache\("):
        ToEditCollator(Prior(make_llama()), cache=str(tmp_path))
