"""Trainer and SFTTrainer edit what they train on, and nothing that they evaluate on."""

import functools

import numpy as np
import pytest
import torch
from trainees import (
    AGGRESSIVE,
    IDLE,
    Recorder,
    assert_same_weights,
    by_first_token,
    counted_passes,
    dataset,
    documents,
    make_prior,
    make_trainee,
    make_trainer,
    numbers_logged,
    weights,
)
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
)

from toedit_collate import Prior, ToEditCollator

TRAIN, HELD_OUT = documents(8), documents(6, seed=1)
WAYS = ["collator", "both", "callback", "attach"]
# Weights that never change: each evaluation must give the same, whatever was trained on.
STILL = {"learning_rate": 0.0, "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}


def run(folder, tokenizer, way, *, evaluation=None, **arguments):
    """Train and evaluate; returns the trainer, what the model was given, and the collator."""
    evaluation = dataset(HELD_OUT) if evaluation is None else evaluation
    trainer, collator = make_trainer(
        folder,
        tokenizer,
        way=way,
        train=dataset(TRAIN),
        trainer_arguments={"eval_dataset": evaluation, **arguments.pop("trainer_arguments", {})},
        **{**STILL, **arguments},
    )
    recorder = Recorder(trainer.model)
    trainer.train()
    return trainer, recorder, collator


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer):
    """Runs that several tests look at, each made once."""

    @functools.cache
    def get(way, kind="Trainer"):
        return run(tmp_path_factory.mktemp("run"), tokenizer, way, kind=kind)

    return get


def assert_only_training_is_edited(recorder, collator, held_out=HELD_OUT):
    """Each training batch is edited, so also the first one after an evaluation."""
    originals = by_first_token(TRAIN)
    batches = recorder.batches(training=True)
    assert batches
    for rows in batches:
        assert any(row != originals[row[0]] for row in rows)
    evaluated = recorder.rows(training=False)
    assert evaluated
    assert all(row == by_first_token(held_out)[row[0]] for row in evaluated)
    assert collator.stats["changed"] > 0
    assert collator.stats["batches"] == len(batches)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["Trainer", "SFTTrainer"])
def test_evaluation_is_never_edited(tmp_path, tokenizer, made, kind, way):
    plain, seen, _ = made(None, kind)
    trainer, recorder, collator = run(tmp_path, tokenizer, way, kind=kind)
    assert_only_training_is_edited(recorder, collator)
    assert seen.rows(training=True) != recorder.rows(training=True)
    logged = numbers_logged(trainer, "eval_")
    assert len(logged) == 5  # at the start, and after each of four steps
    assert logged == numbers_logged(plain, "eval_")[:5]  # the plain run is evaluated again below

    after, expected = trainer.evaluate(), plain.evaluate()
    assert after["eval_loss"] == expected["eval_loss"]
    ours = trainer.predict(plain.eval_dataset, metric_key_prefix="test")
    theirs = plain.predict(plain.eval_dataset, metric_key_prefix="test")
    assert ours.metrics["test_loss"] == theirs.metrics["test_loss"]
    # trl 1.10 predicts several arrays.
    np.testing.assert_equal(ours.predictions, theirs.predictions)
    assert (ours.label_ids == theirs.label_ids).all()
    assert_only_training_is_edited(recorder, collator)


@pytest.mark.parametrize("way", ["collator", "callback"])
@pytest.mark.parametrize("moment", ["evaluate", "predict"])
def test_evaluation_without_training_is_not_edited(tmp_path, tokenizer, way, moment):
    trainer, collator = make_trainer(tmp_path, tokenizer, way=way)
    recorder = Recorder(trainer.model)
    getattr(trainer, moment)(dataset(HELD_OUT))
    assert sorted(recorder.rows(training=False)) == sorted(HELD_OUT)
    assert collator.stats["batches"] == 0


@pytest.mark.parametrize("way", ["collator", "callback"])
def test_several_evaluation_sets(tmp_path, tokenizer, way):
    sets = {"a": dataset(HELD_OUT[:3]), "b": dataset(HELD_OUT[3:])}
    plain, _, _ = run(tmp_path, tokenizer, None, evaluation=sets)
    trainer, recorder, collator = run(tmp_path, tokenizer, way, evaluation=sets)
    assert_only_training_is_edited(recorder, collator)
    for prefix in ("eval_a_", "eval_b_"):
        assert len(numbers_logged(trainer, prefix)) == 5
        assert numbers_logged(trainer, prefix) == numbers_logged(plain, prefix)


@pytest.mark.usefixtures("end_workers")
def test_persistent_workers(tmp_path, tokenizer):
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    plain, _, _ = run(tmp_path, tokenizer, None, max_steps=6)
    ways = ("collator", "callback")
    runs = [run(tmp_path, tokenizer, way, max_steps=6, **workers) for way in ways]
    for trainer, recorder, collator in runs:
        assert_only_training_is_edited(recorder, collator)
        assert numbers_logged(trainer, "eval_") == numbers_logged(plain, "eval_")


class ReadsEvaluation(TrainerCallback):
    """Looks at evaluation batches in the middle of training, as callbacks for samples do."""

    def __init__(self, own_loader):
        self.own_loader = own_loader
        self.trainer = None
        self.rows = []

    def on_step_end(self, args, state, control, eval_dataloader=None, **kwargs):
        loader = self.trainer.get_eval_dataloader() if self.own_loader else eval_dataloader
        for batch in loader or ():
            for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                self.rows.append(row[mask.bool()].tolist())


@pytest.mark.parametrize("own_loader", [False, True])
@pytest.mark.parametrize("way", ["collator", "callback"])
def test_a_callback_reads_evaluation_batches(tmp_path, tokenizer, way, own_loader):
    reader = ReadsEvaluation(own_loader)
    trainer, collator = make_trainer(
        tmp_path,
        tokenizer,
        way=way,
        train=dataset(TRAIN),
        callbacks=[reader],
        trainer_arguments={"eval_dataset": dataset(HELD_OUT)},
        **STILL,
    )
    reader.trainer = trainer
    recorder = Recorder(trainer.model)
    trainer.train()
    assert reader.rows
    assert all(row in HELD_OUT for row in reader.rows)
    assert_only_training_is_edited(recorder, collator)


@pytest.mark.parametrize("way", ["collator", "callback"])
def test_a_callback_reads_evaluation_batches_of_the_training_set(tmp_path, tokenizer, way):
    """One data set for both: only the loader tells the two apart."""
    rows = [{"input_ids": row} for row in TRAIN]
    reader = ReadsEvaluation(own_loader=False)
    trainer, collator = make_trainer(
        tmp_path, tokenizer, way=way, train=rows, callbacks=[reader],
        trainer_arguments={"eval_dataset": rows}, **STILL,
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    trainer.train()
    assert len(reader.rows) > 8
    assert all(row in TRAIN for row in reader.rows)
    assert_only_training_is_edited(recorder, collator, TRAIN)


class ReadsTraining(TrainerCallback):
    def __init__(self):
        self.rows = []

    def on_step_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if state.global_step == 0:
            self.rows = next(iter(train_dataloader))["input_ids"].tolist()


def test_a_callback_reads_training_batches_edited(tmp_path, tokenizer):
    reader = ReadsTraining()
    train = dataset([row[:8] for row in TRAIN])
    trainer, _ = make_trainer(tmp_path, tokenizer, way="collator", callbacks=[reader], train=train)
    trainer.train()
    assert len(reader.rows) == 2
    assert all(row not in train["input_ids"] for row in reader.rows)


class OwnEvaluation(Seq2SeqTrainer):
    """Overrides `evaluate` as generating trainers do, with a loop of its own before super's."""

    def evaluate(self, eval_dataset=None, **kwargs):
        self.looked_at = [batch["input_ids"] for batch in self.get_eval_dataloader(eval_dataset)]
        return super().evaluate(eval_dataset, **kwargs)


def test_a_subclass_that_overrides_evaluate(tmp_path, tokenizer):
    prior = make_prior(tokenizer)
    collator = ToEditCollator(prior, AGGRESSIVE)
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
        per_device_train_batch_size=2, per_device_eval_batch_size=1, max_steps=2, **STILL,
    )  # fmt: skip
    trainer = OwnEvaluation(
        make_trainee(), arguments, collator, dataset(TRAIN), dataset(HELD_OUT),
        processing_class=tokenizer,
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    trainer.train()
    assert [row[0].tolist() for row in trainer.looked_at] == HELD_OUT
    assert_only_training_is_edited(recorder, collator)


def test_a_mid_training_evaluation_with_moving_weights(tmp_path, tokenizer):
    """A prior that selects nothing leaves training and evaluation bit for bit as they are."""
    prior = Prior(make_trainee(seed=7), tokenizer)
    moving = {"learning_rate": 1e-2, "num_train_epochs": 2}
    plain, _, _ = run(tmp_path, tokenizer, None, **moving)
    with counted_passes(prior) as passes:
        trainer, _, collator = run(
            tmp_path, tokenizer, "collator", policy=IDLE, prior=prior, **moving
        )
    assert len(passes) == collator.stats["batches"] == 8
    assert collator.stats["selected"] == 0
    assert collator.stats["scored"] > 0
    assert numbers_logged(trainer, "loss") == numbers_logged(plain, "loss")
    losses = numbers_logged(trainer, "eval_")
    assert losses == numbers_logged(plain, "eval_")
    assert len({entry["eval_loss"] for entry in losses}) == len(losses)
    assert_same_weights(weights(trainer.model), weights(plain.model))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_makes_the_same_edits(tmp_path, tokenizer, made, way):
    _, first, _ = made("collator")
    _, recorder, _ = run(tmp_path, tokenizer, way)
    assert recorder.given == first.given


def test_labels_follow_edits(made):
    _, recorder, _ = made("collator")
    for given in recorder.given:
        assert given.labels == given.rows


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_gradient_accumulation(tmp_path, tokenizer, accumulation):
    """Batches are fetched together then; each is edited once, and none is left out."""
    _, recorder, collator = run(
        tmp_path, tokenizer, "collator", gradient_accumulation_steps=accumulation
    )
    assert_only_training_is_edited(recorder, collator)
    assert sorted(row[0] for row in recorder.rows(training=True)) == [row[0] for row in TRAIN]


def test_num_items_in_batch_counts_the_edited_labels(tmp_path, tokenizer):
    """With drop_below there are fewer labels, and the loss is divided by what is left."""
    policy = AGGRESSIVE.replace(threshold=0.6, drop_below=1e-3)
    counts = []

    class Counting(Trainer):
        def compute_loss(self, model, inputs, *args, num_items_in_batch=None, **kwargs):
            is_label = inputs["labels"] != -100
            # Older transformers count the first of each row, too, which has no loss.
            counted = {int(is_label.sum()), int(is_label[:, 1:].sum())}
            counts.append((counted, int(num_items_in_batch)))
            return super().compute_loss(
                model, inputs, *args, num_items_in_batch=num_items_in_batch, **kwargs
            )

    _, _, collator = run(
        tmp_path, tokenizer, "collator", policy=policy, trainer_class=Counting,
        eval_strategy="no", eval_on_start=False,
    )  # fmt: skip
    assert collator.stats["dropped"] > 0
    assert counts
    assert all(counted in labels for labels, counted in counts)


def test_trainer_pops_and_sets_keys(tmp_path, tokenizer):
    """Label smoothing pops the labels from the batch."""
    _, recorder, collator = run(tmp_path, tokenizer, "collator", label_smoothing_factor=0.1)
    assert_only_training_is_edited(recorder, collator)


def test_two_runs_of_one_trainer(tmp_path, tokenizer):
    for way in ("collator", "callback"):
        trainer, recorder, collator = run(tmp_path, tokenizer, way)
        first = recorder.rows(training=True)
        trainer.train()
        assert recorder.rows(training=True) == first * 2
        assert collator.stats["batches"] == 8


def test_without_the_callback_a_prior_that_is_trained_is_refused(tmp_path, tokenizer):
    model = make_trainee()
    trainer, _ = make_trainer(
        tmp_path, tokenizer, way="collator", model=model, prior=Prior(model, tokenizer)
    )
    with pytest.raises(ValueError, match=r"the prior is the model in training.*Prior\.shared"):
        trainer.train()


def test_prompt_tokens_of_rows_with_labels_are_never_edited(tmp_path, tokenizer):
    labels = [[-100] * 4 + row[4:] for row in TRAIN]
    trainer, collator = make_trainer(
        tmp_path, tokenizer, way="collator", base_collator=DataCollatorForSeq2Seq(tokenizer),
        train=dataset(TRAIN, labels=labels),
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    trainer.train()
    originals = by_first_token(TRAIN)
    for row in recorder.rows(training=True):
        assert row[:4] == originals[row[0]][:4]
    assert collator.stats["changed"] > 0
    assert collator.stats["scored"] <= sum(len(row) - 4 for row in TRAIN)


def test_the_trainer_logs_the_same_loss_as_the_edited_rows_give(tmp_path, tokenizer):
    """Editing beforehand, and training on that, is the same as editing on the fly."""
    _, recorder, _ = run(tmp_path, tokenizer, "collator", learning_rate=1e-2)
    edited = by_first_token(recorder.rows(training=True))
    ours, _, _ = run(tmp_path, tokenizer, "collator", learning_rate=1e-2)
    plain, _ = make_trainer(
        tmp_path, tokenizer, train=dataset([edited[row[0]] for row in TRAIN]),
        learning_rate=1e-2,
    )  # fmt: skip
    plain.train()
    assert [e["loss"] for e in numbers_logged(ours, "loss")] == [
        e["loss"] for e in numbers_logged(plain, "loss")
    ]
    assert_same_weights(weights(ours.model), weights(plain.model))
    assert not torch.equal(ours.model.lm_head.weight, make_trainee().lm_head.weight)
