"""Loaders: workers, start methods, pinning, iterable data, accelerate, epochs, resuming."""

import copy
import functools
import multiprocessing
import pickle

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils.pin_memory import pin_memory
from trainees import (
    AGGRESSIVE,
    Recorder,
    by_first_token,
    counted_passes,
    dataset,
    documents,
    make_prior,
    make_trainer,
)
from transformers import TrainerCallback

from toedit_collate import ToEditBatch, ToEditCollator

TEXTS = documents(8)
START_METHODS = [
    "fork",
    pytest.param("spawn", marks=pytest.mark.slow),
    pytest.param("forkserver", marks=pytest.mark.slow),
]


@pytest.fixture
def collator(tokenizer):
    return ToEditCollator(make_prior(tokenizer), AGGRESSIVE)


def rows_of(batch):
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [row[mask.bool()].tolist() for row, mask in pairs]


def edited_rows(loader):
    return [row for batch in loader for row in rows_of(batch)]


@pytest.fixture
def expected(collator):
    """The edited texts, from one batch that holds them all."""
    rows = rows_of(collator(TEXTS))
    assert rows != TEXTS
    return rows


@pytest.mark.usefixtures("end_workers")
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("method", START_METHODS)
def test_workers_collate_and_the_main_process_edits(collator, expected, method, persistent):
    loader = DataLoader(
        TEXTS, batch_size=3, collate_fn=collator, num_workers=2,
        multiprocessing_context=method, persistent_workers=persistent,
    )  # fmt: skip
    before = collator.stats["batches"]
    for _ in range(2):
        assert edited_rows(loader) == expected
    assert collator.stats["batches"] == before + 6


@pytest.mark.slow
@pytest.mark.parametrize("way", ["collator", "callback"])
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_trainer_with_workers(tmp_path, tokenizer, method, way):
    given = []
    for workers in ({}, {"num_workers": 2, "multiprocessing_context": method}):
        trainer, _ = make_trainer(
            tmp_path, tokenizer, way=way, train=dataset(TEXTS),
            **{f"dataloader_{name}": value for name, value in workers.items()},
        )  # fmt: skip
        recorder = Recorder(trainer.model)
        trainer.train()
        given.append(recorder.given)
    assert given[0] == given[1]


class ReadsEarly:
    """A collate function that looks at the batch where there is no prior."""

    def __init__(self, collator):
        self.collator = collator

    def __call__(self, features):
        batch = self.collator(features)
        batch["input_ids"]
        return batch


@pytest.mark.usefixtures("end_workers")
def test_reading_in_a_worker_is_refused(collator):
    loader = DataLoader(TEXTS[:1], collate_fn=ReadsEarly(collator), num_workers=1)
    with pytest.raises(RuntimeError, match=r"read in a DataLoader worker.*base_collator"):
        next(iter(loader))


def test_a_batch_that_only_looks_is_not_read_in_a_worker(collator):
    batch = collator(TEXTS)
    assert "not yet edited" in repr(batch)
    assert not hasattr(batch, "no_such_key")
    assert batch.is_pending
    assert collator.stats["batches"] == 0


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("side", ["left", "right"])
def test_edits_do_not_depend_on_batches_and_padding(tokenizer, expected, size, side):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = side
    collator = ToEditCollator(make_prior(tokenizer), AGGRESSIVE)
    assert edited_rows(DataLoader(TEXTS, size, collate_fn=collator)) == expected


def test_edits_do_not_depend_on_order(collator, expected):
    torch.manual_seed(0)
    loader = DataLoader(TEXTS, 3, shuffle=True, collate_fn=collator)
    rows = edited_rows(loader)
    assert rows != expected
    assert by_first_token(rows) == by_first_token(expected)


def test_editing_consumes_no_random_numbers(collator):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    collator(TEXTS)["input_ids"]
    assert collator.stats["changed"] > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "read",
    [
        lambda batch: batch["input_ids"],
        lambda batch: batch.input_ids,
        lambda batch: batch.get("input_ids"),
        lambda batch: dict(batch)["input_ids"],
        lambda batch: {**batch}["input_ids"],
        lambda batch: dict(batch.items())["input_ids"],
        lambda batch: next(iter(batch.values())),
        lambda batch: batch.pop("input_ids"),
        lambda batch: batch.copy()["input_ids"],
        lambda batch: batch.to("cpu")["input_ids"],
        lambda batch: copy.copy(batch)["input_ids"],
        lambda batch: copy.deepcopy(batch)["input_ids"],
    ],
)
def test_however_a_batch_is_read_it_is_edited(collator, expected, read):
    rows = [row[row != 2].tolist() for row in read(collator(TEXTS))]
    assert rows == expected


def test_writing_to_a_batch_edits_it_first(collator, expected):
    batch = collator(TEXTS)
    batch["more"] = 1
    assert not batch.is_pending
    del batch["labels"]
    assert set(batch) == {"input_ids", "attention_mask", "more"}
    assert len(batch) == 3
    assert "labels" not in batch
    assert rows_of(batch) == expected


def test_a_batch_is_edited_once(collator):
    batch = collator(TEXTS)
    batch.to("cpu").to("cpu")
    batch["input_ids"], batch["labels"]
    assert collator.stats["batches"] == 1


def test_pinning_leaves_the_batch_unedited(collator, expected, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: pinned.append(self) or self)
    batch = pin_memory(collator(TEXTS))
    assert isinstance(batch, ToEditBatch)
    assert batch.is_pending
    assert len(pinned) == 3
    assert collator.stats["batches"] == 1  # that of `expected`
    assert rows_of(batch) == expected


def test_pickling_leaves_the_prior_at_home(collator, expected):
    parcel = pickle.dumps(collator)
    weights = sum(p.numel() * 4 for p in collator.prior.model.parameters())
    tokenizer = len(pickle.dumps(collator.tokenizer))
    assert len(parcel) < weights / 2 + 3 * tokenizer
    # Back in the process of its editor, it is as before; and so is what it collated elsewhere.
    there = pickle.loads(parcel)
    assert there.editor is collator.editor
    assert rows_of(pickle.loads(pickle.dumps(there(TEXTS)))) == expected


def test_a_batch_outlives_the_name_of_its_collator(tokenizer):
    assert rows_of(ToEditCollator(make_prior(tokenizer), AGGRESSIVE)(TEXTS)) != TEXTS


def test_a_batch_from_elsewhere_without_its_collator(tokenizer):
    parcel = pickle.dumps(ToEditCollator(make_prior(tokenizer), AGGRESSIVE)(TEXTS))
    with pytest.raises(RuntimeError, match="is gone, or lives in another process"):
        pickle.loads(parcel)["input_ids"]


def test_epochs_of_a_plain_loop(collator, expected):
    loader = DataLoader(TEXTS, 3, collate_fn=collator)
    assert edited_rows(loader) == expected
    collator.set_epoch(1)
    second = edited_rows(loader)
    assert second != expected
    collator.set_epoch(0)
    assert edited_rows(loader) == expected


@pytest.mark.parametrize("redraw", ["epoch", "never"])
@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_of_an_accelerated_loop(tokenizer, expected, redraw, workers):
    collator = ToEditCollator(make_prior(tokenizer), AGGRESSIVE.replace(redraw=redraw))
    loader = DataLoader(TEXTS, 2, collate_fn=collator, num_workers=workers)
    loader = Accelerator(cpu=True).prepare(loader)
    epochs = [edited_rows(loader) for _ in range(2)]
    assert epochs[0] == expected if redraw == "epoch" else epochs[0] != TEXTS
    assert (epochs[0] == epochs[1]) is (redraw == "never")


def test_an_explicit_epoch_goes_before_that_of_an_accelerated_loader(tokenizer, expected):
    """Whose count begins at 0 again in a run that goes on in a new process."""
    second = ToEditCollator(make_prior(tokenizer), AGGRESSIVE)
    loader = Accelerator(cpu=True).prepare(DataLoader(TEXTS, 2, collate_fn=second))
    second.set_epoch(1)
    found = edited_rows(loader)
    assert found != expected
    second.set_epoch(0)
    assert edited_rows(loader) == expected
    second.set_epoch(1)
    assert edited_rows(loader) == found


def test_an_explicit_epoch_is_not_for_a_trainer(tmp_path, tokenizer):
    given = []
    for tell in (lambda collator: None, lambda collator: collator.set_epoch(7)):
        trainer, collator = make_trainer(tmp_path, tokenizer, way="collator", train=dataset(TEXTS))
        tell(collator)
        recorder = Recorder(trainer.model)
        trainer.train()
        given.append(recorder.given)
    assert given[0] == given[1]


@pytest.mark.parametrize(("redraw", "different"), [("epoch", 3), ("never", 1)])
@pytest.mark.parametrize("way", ["collator", "callback", "attach"])
def test_epochs_of_a_trainer(tmp_path, tokenizer, redraw, different, way):
    trainer, _ = make_trainer(
        tmp_path, tokenizer, way=way, train=dataset(TEXTS), num_train_epochs=3,
        policy=AGGRESSIVE.replace(redraw=redraw),
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    trainer.train()
    rows = recorder.rows(training=True)
    epochs = [by_first_token(rows[start : start + 8]) for start in (0, 8, 16)]
    assert all(epoch.keys() == epochs[0].keys() for epoch in epochs)
    assert len({str(sorted(epoch.items())) for epoch in epochs}) == different


class Stream(IterableDataset):
    def __iter__(self):
        yield from ({"input_ids": row} for row in TEXTS)


SOURCES = {
    "map": (lambda: dataset(TEXTS), {}),
    "stream": (Stream, {"accelerator_config": {"dispatch_batches": False}}),
    "dispatched stream": (Stream, {}),
}


class SaveAt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_save |= state.global_step in (3, 8, 11)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer):
    """Runs that are not interrupted: two epochs of eight batches, made once for each kind."""

    @functools.cache
    def get(source, way):
        folder = tmp_path_factory.mktemp("whole")
        make, settings = SOURCES[source]
        settings = {
            **settings, "train": make(), "way": way, "per_device_train_batch_size": 1,
            "max_steps": 16, "num_train_epochs": 2,
        }  # fmt: skip
        trainer, collator = make_trainer(folder, tokenizer, callbacks=[SaveAt()], **settings)
        recorder = Recorder(trainer.model)
        with counted_passes(collator.prior) as passes:
            trainer.train()
        assert len(passes) == 16
        assert collator.stats["batches"] == 16
        return folder, settings, recorder.given

    return get


# A Trainer that does not know how long a stream is can't resume it after its first epoch.
@pytest.mark.parametrize(
    ("source", "interrupted_at"),
    [("map", 3), ("map", 8), ("map", 11), ("stream", 3), ("dispatched stream", 3)],
)
@pytest.mark.parametrize("way", ["collator", "callback"])
def test_resuming(tokenizer, whole, source, way, interrupted_at):
    """Skipped batches cost no pass of the prior."""
    folder, settings, given = whole(source, way)
    resumed, collator = make_trainer(folder, tokenizer, **settings)
    rest = Recorder(resumed.model)
    with counted_passes(collator.prior) as passes:
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{interrupted_at}"))
    assert len(passes) == 16 - interrupted_at
    assert collator.stats["batches"] == 16 - interrupted_at
    assert rest.given == given[interrupted_at:]
    assert all(one.rows[0] not in TEXTS for one in rest.given)
    assert resumed.state.log_history[-1]["step"] == 16


@pytest.mark.parametrize("dispatch", [False, True])
@pytest.mark.parametrize("way", ["collator", "callback"])
def test_a_stream_is_edited_and_its_evaluation_is_not(tmp_path, tokenizer, way, dispatch):
    held_out = documents(4, seed=5)
    trainer, collator = make_trainer(
        tmp_path, tokenizer, way=way, train=Stream(), max_steps=4,
        accelerator_config={"dispatch_batches": dispatch}, eval_strategy="steps", eval_steps=2,
        trainer_arguments={"eval_dataset": dataset(held_out)},
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    trainer.train()
    trained = recorder.rows(training=True)
    assert len(trained) == 8
    assert all(row not in TEXTS for row in trained)
    assert all(row in held_out for row in recorder.rows(training=False))
    assert collator.stats["batches"] == 4


def test_skipping_batches_of_an_accelerated_loop(tokenizer, expected):
    collator = ToEditCollator(make_prior(tokenizer), AGGRESSIVE)
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(TEXTS, 2, collate_fn=collator))
    with counted_passes(collator.prior) as passes:
        rows = edited_rows(accelerator.skip_first_batches(loader, 3))
    assert rows == expected[6:]
    assert passes == [2]
