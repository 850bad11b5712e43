"""A collator and its editor: copies, pickles, and several of them in one process."""

import copy
import pickle

import pytest
import torch
from trainees import (
    AGGRESSIVE,
    Recorder,
    by_first_token,
    dataset,
    documents,
    make_prior,
    make_trainer,
)
from transformers import BatchEncoding

from toedit_collate import EditPolicy, ToEditBatch, ToEditCallback, ToEditCollator, attach

TEXTS = documents(4)
OTHER = EditPolicy(threshold=0.05, exclude_original=True, seed=1)


def rows_of(batch):
    return [row[row != 2].tolist() for row in batch["input_ids"]]


def plain(batch):
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@pytest.fixture
def collator(tokenizer):
    return ToEditCollator(make_prior(tokenizer), AGGRESSIVE)


class TestCopies:
    @pytest.mark.parametrize(
        "copied",
        [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))],
        ids=["copy", "deepcopy", "pickle"],
    )
    def test_a_copy_has_the_same_editor(self, collator, copied):
        expected = rows_of(collator(TEXTS))
        other = copied(collator)
        assert other.prior is collator.prior
        assert other.policy is collator.policy
        assert rows_of(other(TEXTS)) == expected != TEXTS
        assert collator.stats["batches"] == other.stats["batches"] == 2
        other.set_epoch(1)
        assert rows_of(collator(TEXTS)) != expected

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
    def test_a_copied_batch_is_edited_like_it(self, collator, copied):
        batch = collator(TEXTS)
        other = copied(batch)
        assert batch.is_pending
        assert other.is_pending
        assert rows_of(other) == rows_of(batch) != TEXTS

    def test_away_from_its_editor_it_collates_and_says_where_the_prior_is(self, tokenizer):
        there = pickle.loads(pickle.dumps(ToEditCollator(make_prior(tokenizer), AGGRESSIVE)))
        batch = there(TEXTS)
        assert batch.is_pending
        for ask in (
            lambda: there.prior,
            lambda: there.stats,
            lambda: there.set_epoch(1),
            lambda: there.around(len),
        ):
            with pytest.raises(RuntimeError, match="is gone, or lives in another process"):
                ask()

    def test_copies_keep_the_editor_alive(self, tokenizer):
        expected = rows_of(ToEditCollator(make_prior(tokenizer), AGGRESSIVE)(TEXTS))
        collator = copy.deepcopy(ToEditCollator(make_prior(tokenizer), AGGRESSIVE))
        assert rows_of(pickle.loads(pickle.dumps(collator(TEXTS)))) == expected


def test_two_collators_in_one_process(tokenizer, collator):
    other = ToEditCollator(make_prior(tokenizer), OTHER)
    first, second = (pickle.loads(pickle.dumps(c(TEXTS))) for c in (collator, other))
    ours, theirs = rows_of(first), rows_of(second)
    assert ours != theirs
    assert ours == rows_of(collator(TEXTS))
    assert collator.stats["batches"] == 2
    assert other.stats["batches"] == 1


@pytest.mark.parametrize("ways", [("both", "collator"), ("collator", "both"), ("both", "both")])
def test_one_collator_in_two_trainers(tmp_path, tokenizer, collator, ways):
    """Each trains on edited rows, also where only the other's training loader is known."""
    given = []
    for way in ways:
        callbacks = [ToEditCallback(collator)] if way == "both" else []
        trainer, _ = make_trainer(
            tmp_path, tokenizer, base_collator=collator, train=dataset(TEXTS), callbacks=callbacks
        )
        recorder = Recorder(trainer.model)
        trainer.train()
        given.append(by_first_token(recorder.rows(training=True)))
    originals = by_first_token(TEXTS)
    assert given[0] == given[1]
    assert all(row != originals[number] for number, row in given[0].items())
    assert collator.stats["batches"] == 4


def test_a_trainer_that_was_attached_to_leaves_the_collators_of_others_alone(tmp_path, tokenizer):
    prior = make_prior(tokenizer)
    trainer, _ = make_trainer(tmp_path, tokenizer, train=dataset(TEXTS))
    attached = attach(trainer, prior, AGGRESSIVE)
    own = ToEditCollator(prior, AGGRESSIVE)
    loader = torch.utils.data.DataLoader(TEXTS, 2, collate_fn=own)
    assert [row for batch in loader for row in rows_of(batch)] != TEXTS
    assert attached.stats["batches"] == 0


class TestBatchesAreMappings:
    """What a BatchEncoding of transformers does, a ToEditBatch does, edited."""

    @pytest.fixture
    def expected(self, collator):
        return BatchEncoding(dict(collator(TEXTS)))

    @pytest.mark.parametrize(
        "use",
        [
            lambda batch: {} | batch,
            lambda batch: batch | {"more": 1},
            lambda batch: {"labels": 0, "more": 1} | batch,
            lambda batch: batch | batch,
            lambda batch: batch.data,
            lambda batch: {**batch},
            lambda batch: dict(batch),
            lambda batch: dict(batch.items()),
            lambda batch: dict(zip(batch.keys(), batch.values(), strict=True)),
            lambda batch: batch[:2],
            lambda batch: batch[-1:],
            lambda batch: {"ids": batch.input_ids},
            lambda batch: {"ids": batch.get("input_ids"), "none": batch.get("none")},
            lambda batch: batch.copy(),
            lambda batch: {"ids": batch.pop("input_ids"), "left": len(batch)},
            lambda batch: batch.to("cpu"),
            lambda batch: batch.to(device="cpu", non_blocking=True),
        ],
    )
    def test_as_a_batch_encoding(self, collator, expected, use):
        ours, theirs = dict(use(collator(TEXTS))), dict(use(copy.deepcopy(expected)))
        assert list(ours) == list(theirs)
        assert plain(ours) == plain(theirs)

    def test_updates_in_place(self, collator, expected):
        batch = collator(TEXTS)
        batch |= {"more": 1}
        batch.update(weight=2)
        assert isinstance(batch, ToEditBatch)
        assert set(batch) == {*expected, "more", "weight"}
        assert torch.equal(batch["input_ids"], expected["input_ids"])

    def test_unknown_attributes_and_keys(self, collator):
        batch = collator(TEXTS)
        assert not hasattr(batch, "pixel_values")
        assert batch.is_pending
        with pytest.raises(KeyError):
            batch["pixel_values"]
