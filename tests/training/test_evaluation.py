"""Where the training loader is known, no other batch is edited, whoever reads it and wherever."""

import threading

import pytest
from torch.utils.data import DataLoader
from trainees import (
    AGGRESSIVE,
    Recorder,
    dataset,
    documents,
    make_prior,
    make_trainer,
)
from transformers import TrainerCallback

from toedit_collate import ToEditCallback, ToEditCollator

TRAIN, HELD_OUT = documents(8), documents(4, seed=1)
KNOWN = ["both", "callback", "attach"]


def rows_of(batches):
    return [
        row[mask.bool()].tolist()
        for batch in batches
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def own_loader(trainer, rows, **settings):
    features = [{"input_ids": row} for row in rows]
    return DataLoader(features, 2, collate_fn=trainer.data_collator, **settings)


def in_thread(read):
    found = []
    thread = threading.Thread(target=lambda: found.extend(read()))
    thread.start()
    thread.join()
    return found


# Ways to read held-out rows that no loop of the Trainer takes part in.
EVALUATIONS = {
    "its evaluation loader": lambda trainer: rows_of(trainer.get_eval_dataloader()),
    "its test loader": lambda trainer: rows_of(trainer.get_test_dataloader(dataset(HELD_OUT))),
    "a loader of one's own": lambda trainer: rows_of(own_loader(trainer, HELD_OUT)),
    "one with workers": lambda trainer: rows_of(own_loader(trainer, HELD_OUT, num_workers=1)),
    "moved first": lambda trainer: rows_of(b.to("cpu") for b in trainer.get_eval_dataloader()),
    "in a thread": lambda trainer: in_thread(lambda: rows_of(trainer.get_eval_dataloader())),
    "in a thread, one's own": lambda trainer: in_thread(
        lambda: rows_of(own_loader(trainer, HELD_OUT))
    ),
}


class Reads(TrainerCallback):
    """Reads rows at every step, in one way."""

    def __init__(self, read):
        self.read = read
        self.trainer = None
        self.rows = []

    def on_step_end(self, args, state, control, **kwargs):
        self.rows += self.read(self.trainer)


def make(folder, tokenizer, way, **arguments):
    trainer, collator = make_trainer(
        folder, tokenizer, way=way, train=dataset(TRAIN),
        trainer_arguments={"eval_dataset": dataset(HELD_OUT)}, **arguments,
    )  # fmt: skip
    return trainer, collator, Recorder(trainer.model)


def assert_all_edited(rows, times=1):
    assert len(rows) == times * len(TRAIN)
    assert not [row for row in rows if row in TRAIN]


def in_every_way(trainer):
    return {name: read(trainer) for name, read in EVALUATIONS.items()}


UNEDITED = dict.fromkeys(EVALUATIONS, HELD_OUT)


@pytest.mark.parametrize("way", KNOWN)
def test_evaluation_is_not_edited_before_in_or_after_training(tmp_path, tokenizer, way):
    reader = Reads(lambda trainer: [in_every_way(trainer)])
    trainer, collator, recorder = make(tmp_path, tokenizer, way, callbacks=[reader])
    reader.trainer = trainer
    assert in_every_way(trainer) == UNEDITED
    trainer.train()
    assert reader.rows == [UNEDITED] * 4
    assert in_every_way(trainer) == UNEDITED
    assert_all_edited(recorder.rows(training=True))
    assert collator.stats["batches"] == 4


@pytest.mark.parametrize("way", KNOWN)
def test_a_loader_of_the_training_rows_that_is_not_the_training_loader(tmp_path, tokenizer, way):
    reader = Reads(lambda trainer: rows_of(own_loader(trainer, TRAIN)))
    trainer, _, recorder = make(tmp_path, tokenizer, way, callbacks=[reader])
    reader.trainer = trainer
    trainer.train()
    assert reader.rows == TRAIN * 4
    assert_all_edited(recorder.rows(training=True))


@pytest.mark.parametrize("way", KNOWN)
def test_the_training_loader_is_edited_wherever_it_is_read(tmp_path, tokenizer, way):
    """Outside of training too, and in a thread of a callback, which has no Trainer on its stack."""
    reader = Reads(lambda trainer: in_thread(lambda: rows_of(trainer.get_train_dataloader())))
    trainer, collator, recorder = make(tmp_path, tokenizer, way, callbacks=[reader])
    reader.trainer = trainer
    assert_all_edited(rows_of(trainer.get_train_dataloader()))
    assert collator.stats["batches"] == 4
    trainer.train()
    assert_all_edited(reader.rows, times=4)
    assert_all_edited(recorder.rows(training=True))


@pytest.mark.parametrize("way", KNOWN)
def test_a_batch_that_is_collated_by_hand_is_edited(tmp_path, tokenizer, way):
    trainer, collator, _ = make(tmp_path, tokenizer, way)
    features = [{"input_ids": row} for row in TRAIN]
    assert_all_edited(rows_of([collator(features)]))
    trainer.train()
    assert_all_edited(rows_of([collator(features)]))


def test_a_callback_that_is_added_late(tmp_path, tokenizer):
    reader = Reads(EVALUATIONS["a loader of one's own"])
    trainer, collator, recorder = make(tmp_path, tokenizer, "collator", callbacks=[reader])
    reader.trainer = trainer
    trainer.add_callback(ToEditCallback(collator))
    trainer.train()
    assert reader.rows == HELD_OUT * 4
    assert_all_edited(recorder.rows(training=True))


def test_a_collator_of_the_callback_alone_is_for_other_loops_too(tmp_path, tokenizer):
    """The Trainer has a collator of its own, so this one is not the Trainer's."""
    collator = ToEditCollator(make_prior(tokenizer), AGGRESSIVE)
    trainer, _, recorder = make(tmp_path, tokenizer, None, callbacks=[ToEditCallback(collator)])
    trainer.train()
    assert_all_edited(recorder.rows(training=True))
    assert_all_edited(rows_of(DataLoader(TRAIN, 2, collate_fn=collator)))


@pytest.mark.usefixtures("end_workers")
@pytest.mark.parametrize("way", KNOWN)
def test_rows_and_workers(tmp_path, tokenizer, way):
    """Batches say from their worker what they are for."""
    reader = Reads(EVALUATIONS["its evaluation loader"])
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer, _, recorder = make(tmp_path, tokenizer, way, callbacks=[reader], **workers)
    reader.trainer = trainer
    trainer.train()
    assert reader.rows == HELD_OUT * 4
    assert_all_edited(recorder.rows(training=True))


def test_with_the_collator_alone_a_callback_reads_its_own_loader_unedited(tmp_path, tokenizer):
    """It reads inside of the Trainer's loop, and not from the loader that feeds it."""
    reader = Reads(EVALUATIONS["a loader of one's own"])
    trainer, collator, recorder = make(tmp_path, tokenizer, "collator", callbacks=[reader])
    reader.trainer = trainer
    trainer.train()
    assert reader.rows == HELD_OUT * 4
    assert_all_edited(recorder.rows(training=True))
    assert collator.stats["batches"] == 4
