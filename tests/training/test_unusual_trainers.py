"""Trainers with loaders of their own, without labels, and those that run out of memory."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from conftest import make_llama
from peft import get_peft_model
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset as TorchIterableDataset
from trainees import (
    AGGRESSIVE,
    Recorder,
    by_first_token,
    dataset,
    documents,
    logprobs,
    lora,
    make_prior,
    make_trainee,
    make_trainer,
    weights,
)
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
)

from toedit_collate import Journal, Prior, attach, self_edit

TEXTS = documents(8)
PROBE = torch.tensor([documents(1, seed=9)[0]])


class Wrapper:
    """What users put around a loader: no `collate_fn`, no `dataset`."""

    def __init__(self, loader):
        self.loader = loader

    def __len__(self):
        return 4

    def __iter__(self):
        return iter(self.loader)


class Delegating(Wrapper):
    def __getattr__(self, name):
        return getattr(self.loader, name)


class Prefetching(Wrapper):
    """Reads one batch ahead, in a thread of its own."""

    def __iter__(self):
        with ThreadPoolExecutor(1) as pool:
            batches = iter(self.loader)
            ahead = pool.submit(next, batches, None)
            while (batch := ahead.result()) is not None:
                ahead = pool.submit(next, batches, None)
                yield batch


class Wrapped(Trainer):
    wrapper = Wrapper

    def get_train_dataloader(self):
        return self.wrapper(super().get_train_dataloader())


class WrappedTwice(Wrapped):
    wrapper = staticmethod(lambda loader: Wrapper(Delegating(loader)))


class Delegated(Wrapped):
    wrapper = Delegating


class Prefetched(Wrapped):
    wrapper = Prefetching


class Batches(Trainer):
    """A list of batches that were collated beforehand."""

    def get_train_dataloader(self):
        rows = [{"input_ids": text} for text in TEXTS]
        return [self.data_collator(rows[i : i + 2]) for i in range(0, 8, 2)]


class Generated(Trainer):
    """Batches that are collated on the way."""

    def get_train_dataloader(self):
        rows = [{"input_ids": text} for text in TEXTS]
        return Wrapper(self.data_collator(rows[i : i + 2]) for i in range(0, 8, 2))


class Plain(Trainer):
    """A plain loader of PyTorch, which accelerate never saw."""

    def get_train_dataloader(self):
        rows = [{"input_ids": text} for text in TEXTS]
        return DataLoader(rows, batch_size=2, collate_fn=self.data_collator)


WRAPPED = [Wrapped, Delegated, Prefetched, Plain]


@pytest.mark.parametrize(
    ("kind", "way"),
    [*product([*WRAPPED, Batches, Generated], ["attach", "both"]), *product(WRAPPED, ["callback"])],
)
def test_loaders_without_a_collate_fn(tmp_path, tokenizer, kind, way):
    trainer, collator = make_trainer(
        tmp_path, tokenizer, way=way, trainer_class=kind, train=dataset(TEXTS),
        eval_strategy="epoch", trainer_arguments={"eval_dataset": dataset(TEXTS[:2])},
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    trainer.train()
    assert collator.stats["batches"] == 4
    trained = by_first_token(recorder.rows(training=True))
    assert all(trained[text[0]] != text for text in TEXTS)
    assert recorder.rows(training=False) == TEXTS[:2]


class Stream(TorchIterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


ROWS = [{"input_ids": text} for text in TEXTS]
LOADERS = {
    "batches": lambda collate: DataLoader(made(collate), batch_size=None),
    "stream of batches": lambda collate: DataLoader(Stream(made(collate)), batch_size=None),
    "lists of rows": lambda collate: DataLoader(
        [ROWS[i : i + 2] for i in range(0, 8, 2)], batch_size=None, collate_fn=collate
    ),
    "stream": lambda collate: DataLoader(Stream(ROWS), batch_size=2, collate_fn=collate),
    "sampler": lambda collate: DataLoader(
        ROWS, batch_size=2, sampler=range(7, -1, -1), collate_fn=collate
    ),
    "batch sampler": lambda collate: DataLoader(
        ROWS, batch_sampler=[[0, 7], [3, 1], [5, 2], [4, 6]], collate_fn=collate
    ),
    "workers": lambda collate: DataLoader(ROWS, batch_size=2, num_workers=1, collate_fn=collate),
}  # fmt: skip


def made(collate):
    return [collate(ROWS[i : i + 2]) for i in range(0, 8, 2)]


@pytest.mark.parametrize("way", ["attach", "callback"])
@pytest.mark.parametrize("name", LOADERS)
def test_loaders_of_all_kinds(tmp_path, tokenizer, name, way):
    """With a collator of their own, of which the Trainer knows nothing."""

    class Own(Trainer):
        def get_train_dataloader(self):
            return LOADERS[name](DataCollatorForLanguageModeling(tokenizer, mlm=False))

    trainer, collator = make_trainer(
        tmp_path, tokenizer, way=way, trainer_class=Own, train=dataset(TEXTS), max_steps=4
    )
    recorder = Recorder(trainer.model)
    trainer.train()
    assert collator.stats["batches"] == 4
    assert all(row not in TEXTS for row in recorder.rows(training=True))


@pytest.mark.parametrize("kind", [WrappedTwice, Batches, Generated])
def test_loaders_that_never_ask_the_collator(tmp_path, tokenizer, kind):
    """The callback alone can't reach their batches; it says so before anything is learned."""
    trainer, collator = make_trainer(
        tmp_path, tokenizer, way="callback", trainer_class=kind, train=dataset(TEXTS)
    )
    before = weights(trainer.model)
    with pytest.raises(ValueError, match=r"nothing was edited.*DataLoader.*attach"):
        trainer.train()
    assert all(
        torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items()
    )
    assert collator.stats["batches"] == 0


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        return (loss, {}) if return_outputs else loss


class TestWithoutLabels:
    @pytest.mark.parametrize("way", ["attach", "callback", "both", "collator"])
    def test_are_refused_where_they_are_needed(self, tmp_path, tokenizer, way):
        trainer, _ = make_trainer(
            tmp_path, tokenizer, way=way, base_collator=DataCollatorWithPadding(tokenizer)
        )
        with pytest.raises(ValueError, match=r"made no labels.*DataCollatorForLanguageModeling"):
            trainer.train()

    def test_with_an_adapter(self, tmp_path, tokenizer):
        model = get_peft_model(make_trainee(), lora())
        base = DataCollatorWithPadding(tokenizer)
        trainer, _ = make_trainer(tmp_path, tokenizer, model=model, base_collator=base)
        attach(trainer, Prior.shared(model), AGGRESSIVE)
        with pytest.raises(ValueError, match="made no labels"):
            trainer.train()

    def test_self_edit(self, tmp_path, tokenizer):
        def make(generation, folder):
            base = DataCollatorWithPadding(tokenizer)
            return make_trainer(tmp_path / "training", tokenizer, base_collator=base)[0]

        with pytest.raises(ValueError, match="made no labels"):
            self_edit(make, make_prior(tokenizer), AGGRESSIVE, generations=1, output_dir=tmp_path)

    def test_another_base_collator_is_the_way_out(self, tmp_path, tokenizer):
        base = DataCollatorWithPadding(tokenizer)
        trainer, _ = make_trainer(tmp_path, tokenizer, base_collator=base)
        collator = attach(
            trainer, make_prior(tokenizer), AGGRESSIVE,
            base_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )  # fmt: skip
        trainer.train()
        assert collator.stats["changed"] > 0

    @pytest.mark.parametrize("own", ["class", "function"])
    def test_a_loss_of_ones_own_may_do_without(self, tmp_path, tokenizer, own):
        def loss(outputs, labels, num_items_in_batch=None):
            return outputs.logits.square().mean()

        arguments = {"trainer_class": OwnLoss}
        if own == "function":
            arguments = {"trainer_arguments": {"compute_loss_func": loss}}
        trainer, collator = make_trainer(
            tmp_path, tokenizer, way="attach", base_collator=DataCollatorWithPadding(tokenizer),
            **arguments,
        )  # fmt: skip
        trainer.train()
        assert collator.stats["changed"] > 0


class Exhausted(Trainer):
    """Runs out of memory once, after the prior was swapped."""

    steps = 0

    def training_step(self, *args, **kwargs):
        self.steps += 1
        if self.steps == 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return super().training_step(*args, **kwargs)


class Beginnings(TrainerCallback):
    """How each attempt begins."""

    def __init__(self, collator):
        self.collator, self.seen = collator, []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            prior = self.collator.prior
            adapters = sorted(getattr(model, "peft_config", {}))
            self.seen.append((prior.generation, adapters, logprobs(prior, PROBE)))


PRIORS = {
    "shared": lambda model, tokenizer: Prior.shared(model),
    "separate": lambda model, tokenizer: make_prior(tokenizer),
    "separate with an adapter": lambda model, tokenizer: Prior(
        get_peft_model(make_llama(), lora(target_modules="all-linear")), tokenizer
    ),
}


@pytest.mark.parametrize(
    ("prior_is", "trains"),
    [("shared", "lora"),
     pytest.param("separate", "lora", marks=pytest.mark.slow),
     ("separate with an adapter", "lora"), ("separate", "all")],
)  # fmt: skip
@pytest.mark.parametrize("refresh", [2, pytest.param("save", marks=pytest.mark.slow)])
def test_a_retry_begins_as_the_first_attempt_did(tmp_path, tokenizer, prior_is, trains, refresh):
    model = make_llama()
    if trains == "lora":
        model = get_peft_model(model, lora(target_modules="all-linear"))
    trainer, _ = make_trainer(
        tmp_path / "run", tokenizer, model=model, trainer_class=Exhausted, train=dataset(TEXTS),
        auto_find_batch_size=True, per_device_train_batch_size=4, max_steps=4, save_steps=2,
        save_strategy="steps", learning_rate=1e-2,
    )  # fmt: skip
    prior = PRIORS[prior_is](model, tokenizer)
    journal = Journal(tmp_path / "journal")
    collator = attach(trainer, prior, AGGRESSIVE, refresh=refresh, journal=journal)
    beginnings = Beginnings(collator)
    trainer.add_callback(beginnings)
    recorder = Recorder(model)
    trainer.train()
    first, second = beginnings.seen
    assert first[:2] == second[:2] == (0, ["default"] * (trains == "lora"))
    torch.testing.assert_close(first[2], second[2], rtol=0, atol=0)
    assert prior.generation == 2
    assert collator.stats["batches"] == 4
    # What the attempt that was given up has edited is not in the journal any more.
    trained = recorder.rows(training=True)[4 * 4 - 4 :]
    early = trained[: 2 * 3]
    sources = {text[0]: text for text in TEXTS}
    assert all(journal.replay(sources[row[0]], 1) == row for row in early)
    assert journal.stats()[1]["tokens"] == sum(len(row) for row in early)
    assert not (tmp_path / "run" / "toedit_prior" / "start").exists()


def test_training_again_after_an_interruption_goes_on(tmp_path, tokenizer):
    """Only what ran out of memory begins again: the user may go on with what was trained."""

    class Interrupted(Exhausted):
        def training_step(self, *args, **kwargs):
            try:
                return super().training_step(*args, **kwargs)
            except RuntimeError:
                raise KeyboardInterrupt from None

    trainer, _ = make_trainer(
        tmp_path, tokenizer, trainer_class=Interrupted, max_steps=4, auto_find_batch_size=True,
        model=make_llama(),
    )  # fmt: skip
    collator = attach(trainer, make_prior(tokenizer), AGGRESSIVE, refresh=2)
    beginnings = Beginnings(collator)
    trainer.add_callback(beginnings)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    assert [generation for generation, *_ in beginnings.seen] == [0, 1]
