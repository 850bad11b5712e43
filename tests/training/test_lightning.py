"""The collator recognises Lightning's loops: one collator for all loaders."""

import pytest
import torch
from torch.utils.data import DataLoader
from trainees import AGGRESSIVE, by_first_token, documents, make_prior, make_trainee

from toedit_collate import EditPolicy, ToEditCollator, soft_cross_entropy

lightning = pytest.importorskip("lightning.pytorch", reason="needs the package lightning")

TRAIN, HELD_OUT = documents(6), documents(4, seed=1)


class Module(lightning.LightningModule):
    """Notes the rows that each of its steps is given."""

    def __init__(self):
        super().__init__()
        self.model = make_trainee()
        self.given = {"train": [], "validate": [], "test": [], "predict": []}

    def note(self, step, batch):
        rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        self.given[step] += [row[mask.bool()].tolist() for row, mask in rows]
        return self.model(**batch).loss

    def training_step(self, batch, index):
        return self.note("train", batch)

    def validation_step(self, batch, index):
        self.note("validate", batch)

    def test_step(self, batch, index):
        self.note("test", batch)

    def predict_step(self, batch, index):
        return self.note("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def make(tokenizer, workers=0, policy=AGGRESSIVE, **settings):
    collator = ToEditCollator(make_prior(tokenizer), policy)
    loaders = [
        DataLoader(rows, 2, collate_fn=collator, num_workers=workers) for rows in (TRAIN, HELD_OUT)
    ]
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1, **settings,
    )  # fmt: skip
    return trainer, collator, *loaders


@pytest.mark.parametrize("workers", [0, 1])
def test_training_is_edited_and_nothing_else(tokenizer, workers):
    trainer, collator, train, held_out = make(tokenizer, workers, val_check_interval=2)
    module = Module()
    trainer.fit(module, train, held_out)
    trainer.validate(module, held_out, verbose=False)
    trainer.test(module, held_out, verbose=False)
    trainer.predict(module, held_out)
    for step in ("validate", "test", "predict"):
        assert module.given[step]
        assert all(row in HELD_OUT for row in module.given[step])
    epochs = module.given["train"][:6], module.given["train"][6:]
    originals = by_first_token(TRAIN)
    for epoch in map(by_first_token, epochs):
        assert epoch.keys() == originals.keys()
        assert all(epoch[number] != originals[number] for number in epoch)
    assert by_first_token(epochs[0]) != by_first_token(epochs[1])
    assert collator.stats["batches"] == 6


def test_epochs_are_those_of_the_trainer(tokenizer):
    """What a loop of one's own gets with `set_epoch`."""
    trainer, _, train, held_out = make(tokenizer)
    module = Module()
    trainer.fit(module, train, held_out)
    own = ToEditCollator(make_prior(tokenizer), AGGRESSIVE)
    expected = []
    for epoch in range(2):
        own.set_epoch(epoch)
        for batch in DataLoader(TRAIN, 2, collate_fn=own):
            rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
            expected += [row[mask.bool()].tolist() for row, mask in rows]
    assert module.given["train"] == expected


def test_labels_of_many_draws(tokenizer):
    """Each loss is that of the batch's draws, and no evaluation batch has any."""

    losses = []

    class Distilling(Module):
        def training_step(self, batch, index):
            draws, labels = batch.pop("draws"), batch.pop("labels")
            loss = soft_cross_entropy(self.model(**batch).logits, draws, labels)
            losses.append(float(loss))
            return loss

    trainer, _, train, held_out = make(tokenizer, policy=EditPolicy.distill(8))
    module = Distilling()
    trainer.fit(module, train, held_out)
    assert len(losses) == 6
    assert all(loss > 0 for loss in losses)
    assert module.given["validate"]
