"""The column `edit`: rows and tokens that stay as they are, wherever they are trained on."""

import pytest
import torch
from conftest import make_tokenizer
from datasets import Dataset
from trainees import AGGRESSIVE, Recorder, dataset, documents, make_prior, make_trainer

from toedit_collate import DecisionCache, EditPolicy, Journal, ToEditCollator
from toedit_collate.training.batch_keys import edit_key
from toedit_collate.training.collator import DefaultCollator

TEXTS = documents(8)
FLAGS = [number % 2 == 0 for number in range(8)]
MAY_EDIT = {text[0]: flag for text, flag in zip(TEXTS, FLAGS, strict=True)}
SOURCE = {text[0]: text for text in TEXTS}


def assert_raw_rows_stay(rows):
    """Each row with `edit=False` is the source, and most of the others are not."""
    rows = [row for row in rows if row[0] in SOURCE]
    raw = [row for row in rows if not MAY_EDIT[row[0]]]
    assert raw
    assert all(row == SOURCE[row[0]] for row in raw)
    assert any(row != SOURCE[row[0]] for row in rows if MAY_EDIT[row[0]])


def documents_of(rows):
    """Documents of rows that may hold several; their first tokens are known."""
    for row in rows:
        at = 0
        while at < len(row):
            length = len(SOURCE[row[at]])
            yield row[at : at + length]
            at += length


@pytest.mark.parametrize(
    ("kind", "way", "settings"),
    [
        ("Trainer", "attach", {}),
        ("Trainer", "attach", {"dataloader_num_workers": 2}),
        ("Trainer", "collator", {"remove_unused_columns": False}),
        ("SFTTrainer", "attach", {}),
        ("SFTTrainer", "attach", {"padding_free": True, "max_length": None}),
    ],
    ids=["trainer", "workers", "collator", "sft", "padding-free"],
)
def test_rows_without_edits_are_trained_on_as_they_are(tmp_path, kind, way, settings):
    train = dataset(TEXTS, labels=TEXTS, edit=FLAGS)
    trainer, collator = make_trainer(
        tmp_path, make_tokenizer(), kind=kind, way=way, train=train, base_collator=None
        if kind == "SFTTrainer" else DefaultCollator(make_tokenizer()), **settings,
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    trainer.train()
    assert_raw_rows_stay(documents_of(recorder.rows(training=True)))
    raw = sum(len(text) for text, flag in zip(TEXTS, FLAGS, strict=True) if not flag)
    assert (collator.stats["raw"], collator.stats["raw_changed"]) == (raw, 0)
    assert 0 < collator.stats["changed"] <= collator.stats["tokens"] - raw


def test_evaluation_takes_the_column_and_gives_it_to_no_model(tmp_path):
    data = dataset(TEXTS, labels=TEXTS, edit=FLAGS)
    trainer, _ = make_trainer(
        tmp_path, make_tokenizer(), way="attach", train=data,
        base_collator=DefaultCollator(make_tokenizer()), trainer_arguments={"eval_dataset": data},
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    trainer.evaluate()
    assert sorted(recorder.rows(training=False)) == sorted(TEXTS)


def test_a_trainer_that_drops_the_column_is_refused(tmp_path):
    train = dataset(TEXTS, labels=TEXTS, edit=FLAGS)
    trainer, _ = make_trainer(
        tmp_path, make_tokenizer(), way="collator", train=train,
        base_collator=DefaultCollator(make_tokenizer()),
    )  # fmt: skip
    with pytest.raises(ValueError, match="column 'edit', and the Trainer dropped it"):
        trainer.train()


def collate(texts, flags, **stores):
    collator = ToEditCollator(
        make_prior(), AGGRESSIVE, base_collator=DefaultCollator(make_tokenizer()), **stores
    )
    rows = [{"input_ids": ids, "edit": flag} for ids, flag in zip(texts, flags, strict=True)]
    batch = collator(rows)
    assert "edit" not in dict(batch)
    return [ids[: len(t)].tolist() for ids, t in zip(batch["input_ids"], texts, strict=True)]


def test_single_tokens_stay():
    text = TEXTS[0]
    (edited,) = collate([text], [None])
    at = next(i for i, token in enumerate(text) if edited[i] != token)
    (fewer,) = collate([text], [[i != at for i in range(len(text))]])
    assert fewer == [*edited[:at], text[at], *edited[at + 1 :]]
    assert edited != text


@pytest.mark.parametrize("raw_first", [True, False])
def test_a_text_that_is_edited_in_one_source_and_raw_in_another(tmp_path, raw_first):
    """A journal and a cache know documents by their tokens, which both copies have."""
    flags = [not raw_first, raw_first]
    texts, (edited,) = [TEXTS[0]] * 2, collate(TEXTS[:1], [True])
    expected = [edited if flag else TEXTS[0] for flag in flags]
    assert edited != TEXTS[0]
    journal, cache = Journal(tmp_path / "journal"), DecisionCache(None)
    for _ in range(2):  # recorded, then replayed
        assert collate(texts, flags, journal=journal) == expected
        assert collate(texts, flags, cache=cache) == expected
    assert collate(TEXTS[:1], [False], journal=journal) == [TEXTS[0]]


def test_dropping_leaves_raw_rows_whole():
    policy = EditPolicy(region="none", drop_below=0.5)
    collator = ToEditCollator(make_prior(), policy, base_collator=DefaultCollator(make_tokenizer()))
    rows = [{"input_ids": TEXTS[0], "edit": flag} for flag in (True, False)]
    batch = collator(rows)
    lengths = batch["attention_mask"].sum(-1).tolist()
    assert lengths[0] < lengths[1] == len(TEXTS[0])


def test_keys_of_other_layouts():
    rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]
    joined = {"input_ids": torch.tensor([[5, 6, 7, 8, 9, 0]])}
    assert edit_key(joined, rows, [True, False]).int().tolist() == [[1, 1, 1, 0, 0, 0]]
    left = {
        "input_ids": torch.tensor([[5, 6, 7], [0, 8, 9]]),
        "attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]]),
    }
    flags = [[False, True, True], [True, False]]
    assert edit_key(left, rows, flags).int().tolist() == [[0, 1, 1], [0, 1, 0]]
    with pytest.raises(ValueError, match="not known to which tokens"):
        edit_key({"input_ids": torch.zeros(3, 2, dtype=torch.long)}, rows, [True, False])
    with pytest.raises(ValueError, match="2 flags for a row of 3 tokens"):
        edit_key(left, rows, [[True, False], True])


def test_a_key_of_another_kind_is_refused():
    def base(rows):
        return {"input_ids": torch.tensor(rows), "edit": torch.tensor([1.0])}

    batch = ToEditCollator(make_prior(), AGGRESSIVE, base_collator=base)([TEXTS[0]])
    with pytest.raises(TypeError, match="edit must be a bool tensor"):
        batch["input_ids"]


def test_a_streamed_dataset_keeps_the_column(tmp_path):
    rows = [{"input_ids": t, "labels": t, "edit": f} for t, f in zip(TEXTS, FLAGS, strict=True)]
    trainer, _ = make_trainer(
        tmp_path, make_tokenizer(), way="attach", max_steps=4,
        train=Dataset.from_list(rows).to_iterable_dataset(),
        base_collator=DefaultCollator(make_tokenizer()),
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    trainer.train()
    assert_raw_rows_stay(recorder.rows(training=True))
