"""What carries the new tokens: inputs, labels or both; and every scored token resampled."""

import numpy as np
import pytest
import reference
import torch
from conftest import likely_ids, make_llama
from sameness import assert_same_edit
from scipy import stats

from toedit_collate import DecisionCache, EditPolicy, Journal, Prior, edit_tokens
from toedit_collate.editing.with_journal import edit_with_journal
from toedit_collate.tokens.token_batch import TokenBatch

TARGETS = ["both", "inputs", "labels"]
EVERY = EditPolicy(region="all", top_k=5)


@pytest.fixture(scope="module")
def ids(prior):
    return likely_ids(prior.model, 4, 30)


@pytest.fixture(scope="module")
def labels(ids):
    labels = ids.clone()
    labels[:, :6] = -100
    return labels


@pytest.mark.parametrize("target", TARGETS)
def test_matches_the_reference(prior, ids, labels, target):
    result = assert_same_edit(prior, EVERY.replace(target=target), ids, labels=labels)
    assert result.changed.any()
    assert torch.equal(result.changed, result.tokens != ids)


@pytest.mark.parametrize(
    ("target", "inputs_move", "labels_move"),
    [("both", True, True), ("inputs", True, False), ("labels", False, True)],
)
def test_only_the_target_moves(prior, ids, labels, target, inputs_move, labels_move):
    result = edit_tokens(prior, ids, labels=labels, policy=EVERY.replace(target=target))
    assert torch.equal(result.input_ids, ids) == (not inputs_move)
    assert torch.equal(result.labels, labels) == (not labels_move)
    assert torch.equal(result.labels == -100, labels == -100)


def test_the_draws_are_the_same_for_each_target(prior, ids, labels):
    tokens = [
        edit_tokens(prior, ids, labels=labels, policy=EVERY.replace(target=target)).tokens
        for target in TARGETS
    ]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])


def test_every_scored_token_is_selected(prior, ids, labels):
    result = edit_tokens(prior, ids, labels=labels, policy=EVERY)
    assert torch.equal(result.selected, result.scored)
    assert result.selected.sum() > 80


@pytest.mark.parametrize("target", TARGETS)
def test_a_cache_serves_all_targets(prior, ids, labels, target):
    cache = DecisionCache()
    edit_tokens(prior, ids, labels=labels, policy=EVERY, cache=cache)
    policy = EVERY.replace(target=target)
    plain = edit_tokens(prior, ids, labels=labels, policy=policy, epoch=1)
    cached = edit_tokens(prior, ids, labels=labels, policy=policy, epoch=1, cache=cache)
    for name in ("input_ids", "labels", "tokens", "selected", "changed"):
        assert torch.equal(getattr(plain, name), getattr(cached, name)), name


def test_a_cache_is_not_filled_with_whole_vocabularies(prior, ids):
    policy = EVERY.replace(sampler="full")
    with pytest.raises(ValueError, match=r"region='all' and sampler='full'.*use EditPolicy"):
        edit_tokens(prior, ids, policy=policy, cache=DecisionCache())


@pytest.mark.parametrize("target", ["inputs", "labels"])
def test_needs_labels(prior, ids, target):
    with pytest.raises(ValueError, match=rf"target='{target}' needs labels.*give labels"):
        edit_tokens(prior, ids, policy=EVERY.replace(target=target))


def journaled(prior, journal, policy, ids, labels):
    source = TokenBatch.of(ids, None, None, labels)
    return edit_with_journal(prior, journal, source, policy=policy, step=0)


@pytest.mark.parametrize("target", TARGETS)
def test_a_journal_replays_the_edited_tokens(prior, ids, labels, target, tmp_path):
    policy = EVERY.replace(target=target)
    plain = edit_tokens(prior, ids, labels=labels, policy=policy)
    journal = Journal(tmp_path)
    for _ in range(2):
        final = journaled(prior, journal, policy, ids, labels).final
        for name in ("input_ids", "labels", "tokens", "changed"):
            assert torch.equal(getattr(final, name), getattr(plain, name)), name
    for row, edited in zip(ids.tolist(), plain.tokens.tolist(), strict=True):
        assert journal.replay(row, 1) == edited
        assert journal.replay(row, 0) == row


def test_labels_of_a_later_generation_are_drawn_after_the_source(ids, labels, tmp_path):
    """Inputs stay the source, so each generation edits it afresh, by its own prior."""
    policy = EVERY.replace(target="labels")
    journal, priors = Journal(tmp_path), [Prior(make_llama(seed)) for seed in range(3)]
    for generation, prior in enumerate(priors):
        prior.generation = generation
        plain = edit_tokens(prior, ids, labels=labels, policy=policy, generation=generation)
        final = journaled(prior, journal, policy, ids, labels).final
        assert torch.equal(final.input_ids, ids)
        assert torch.equal(final.labels, plain.labels)
        for row, edited in zip(ids.tolist(), plain.tokens.tolist(), strict=True):
            assert journal.replay(row, generation + 1) == edited


@pytest.mark.parametrize("target", TARGETS)
def test_a_journal_counts_what_became_another_token(ids, labels, target, tmp_path):
    """Not what a later generation of labels takes back of the one before."""
    policy = EditPolicy(region="below", threshold=0.01, exclude_original=True, target=target)
    journal, priors = Journal(tmp_path), [Prior(make_llama(seed)) for seed in range(3)]
    for generation, prior in enumerate(priors):
        prior.generation = generation
        edited = journaled(prior, journal, policy, ids, labels).edited
        stats = journal.stats()[generation + 1]
        for name in ("scored", "selected", "changed"):
            assert stats[name] == getattr(edited, name).sum() > 0, name
        assert stats["changed"] == stats["selected"]


@pytest.mark.parametrize("earlier", TARGETS)
@pytest.mark.parametrize("spared_by", ["a protection", "its labels"])
def test_labels_that_are_not_drawn_any_more_are_the_source_again(
    ids, labels, earlier, spared_by, tmp_path
):
    """A document of which nothing is scored, but which an earlier generation has changed."""
    journal, prior = Journal(tmp_path), Prior(make_llama())
    journaled(prior, journal, EVERY.replace(target=earlier), ids, labels)
    prior.generation = 1
    policy = EVERY.replace(target="labels")
    if spared_by == "a protection":
        policy = policy.replace(protect=lambda i, _: (i == ids[1]).all(-1, keepdim=True) | (i < 0))
    else:
        labels = torch.where(torch.arange(4)[:, None] == 1, -100, labels)
    plain = edit_tokens(prior, ids, labels=labels, policy=policy, generation=1)
    assert not plain.scored[1].any()
    for _ in range(2):
        final = journaled(prior, journal, policy, ids, labels).final
        assert torch.equal(final.labels, plain.labels)
        assert torch.equal(final.input_ids, ids)
    for row in (0, 2, 3):
        assert journal.replay(ids[row].tolist(), 2) == plain.tokens[row].tolist()


def test_what_an_earlier_generation_removed_can_stand_in_no_source(ids, labels, tmp_path):
    journal, prior = Journal(tmp_path), Prior(make_llama())
    journaled(prior, journal, EditPolicy(region="none", drop_below=0.9), ids, labels)
    prior.generation = 1
    with pytest.raises(ValueError, match=r"target='labels'.*removed tokens.*target='both'"):
        journaled(prior, journal, EVERY.replace(target="labels"), ids, labels)


def test_every_token_is_drawn_from_the_priors_distribution(prior):
    """Many draws at one position: shares compared with probabilities."""
    document = likely_ids(prior.model, 1, 4, seed=3)[0].tolist()
    draws = []
    for epoch in range(400):
        result = edit_tokens(prior, torch.tensor([document]), policy=EVERY, epoch=epoch)
        draws.append(int(result.input_ids[0, 3]))
    logits = reference.document_logits(prior.model, document)[2]
    p = reference.distribution(logits, document[3], EVERY).numpy()
    assert set(draws) <= set(np.flatnonzero(p).tolist())
    # The least likely share a bin: five candidates, of which at least two are likely.
    order = np.argsort(-p)
    bins = [[i] for i in order[:2]] + [list(order[2:])]
    counts = [sum(draws.count(int(i)) for i in group if p[i] > 0) for group in bins]
    expected = [p[group].sum() * len(draws) for group in bins]
    assert stats.chisquare(counts, expected).pvalue > 1e-3
