"""Trainers and trainees for which editing makes no sense are refused, by one clear sentence."""

import importlib
import logging

import pytest
from conftest import make_llama, make_tokenizer
from trainees import (
    AGGRESSIVE,
    QUIET,
    dataset,
    documents,
    make_prior,
    make_trainee,
    make_trainer,
)
from transformers import (
    DataCollatorForLanguageModeling,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, SFTTrainer

from toedit_collate import Prior, ToEditCallback, ToEditCollator, attach
from toedit_collate.training.trainee import check_trainer, find_tokenizer

TEXTS = documents(8)
REFUSED = r"DPOTrainer learns from preferences.*use SFTTrainer or Trainer"


def make_dpo(folder, tokenizer, trainer_class=DPOTrainer, **arguments):
    from datasets import Dataset

    pairs = {"prompt": ["the quick"] * 4, "chosen": [" fox"] * 4, "rejected": [" dog"] * 4}
    return trainer_class(
        make_trainee(),
        ref_model=make_trainee(2),
        args=DPOConfig(str(folder), **{**QUIET, "gradient_checkpointing": False}),
        train_dataset=Dataset.from_dict(pairs),
        processing_class=tokenizer,
        **arguments,
    )


class OwnDPO(DPOTrainer):
    """What a framework makes of it."""


class TestPreferenceTrainers:
    @pytest.mark.parametrize("kind", [DPOTrainer, OwnDPO])
    def test_when_attached(self, tmp_path, tokenizer, kind):
        trainer = make_dpo(tmp_path, tokenizer, kind)
        base = trainer.data_collator
        with pytest.raises(ValueError, match=REFUSED):
            attach(trainer, make_prior(tokenizer), AGGRESSIVE)
        assert trainer.data_collator is base

    def test_when_made_with_the_callback(self, tmp_path, tokenizer):
        callback = ToEditCallback(ToEditCollator(make_prior(tokenizer), AGGRESSIVE))
        with pytest.raises(ValueError, match=REFUSED):
            make_dpo(tmp_path, tokenizer, callbacks=[callback])

    def test_when_training_begins(self, tmp_path, tokenizer):
        trainer = make_dpo(tmp_path, tokenizer)
        trainer.add_callback(ToEditCallback(ToEditCollator(make_prior(tokenizer), AGGRESSIVE)))
        with pytest.raises(ValueError, match=REFUSED):
            trainer.train()

    def test_at_the_first_batch(self, tmp_path, tokenizer):
        trainer = make_dpo(tmp_path, tokenizer)
        base = trainer.data_collator
        trainer.data_collator = ToEditCollator(make_prior(tokenizer), base_collator=base)
        with pytest.raises(ValueError, match=REFUSED):
            trainer.train()

    @pytest.mark.parametrize(
        "module",
        ["dpo", "kto", "reward", "grpo", "rloo", "orpo", "cpo", "ppo", "gkd", "bco", "prm", "sdft",
         "nash_md", "online_dpo", "xpo", "gold", "minillm", "distillation", "sdpo"],
    )  # fmt: skip
    def test_every_trainer_of_trl_that_is_not_for_sft(self, module):
        found = 0
        for place in (f"trl.trainer.{module}_trainer", f"trl.experimental.{module}"):
            try:
                loaded = importlib.import_module(place)
            except ImportError:  # moved, gone, or needs a package that is not installed
                continue
            for name in dir(loaded):
                kind = getattr(loaded, name)
                is_trainer = isinstance(kind, type) and issubclass(kind, Trainer)
                if is_trainer and kind.__module__.startswith(place):
                    found += 1
                    with pytest.raises(ValueError, match="learns from preferences"):
                        check_trainer(kind.__new__(kind))
        if not found:
            pytest.skip(f"the installed trl has no {module} trainer that can be imported")

    @pytest.mark.parametrize("base", [Trainer, SFTTrainer])
    @pytest.mark.parametrize("name", ["OwnTrainer", "UnslothSFTTrainer", "WorkdayTrainer"])
    def test_others_are_fine(self, base, name):
        check_trainer(object.__new__(type(name, (base,), {})))


class TestEncoderDecoders:
    @staticmethod
    def make(folder, tokenizer):
        config = T5Config(
            vocab_size=320, d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2,
            decoder_start_token_id=2, pad_token_id=2,
        )  # fmt: skip
        return Trainer(
            T5ForConditionalGeneration(config),
            TrainingArguments(str(folder), **QUIET),
            DataCollatorForLanguageModeling(tokenizer, mlm=False),
            dataset(TEXTS),
            processing_class=tokenizer,
        )

    MESSAGE = r"encoder-decoder model \(T5ForConditionalGeneration\).*decoder-only"

    def test_when_attached(self, tmp_path, tokenizer):
        with pytest.raises(ValueError, match=self.MESSAGE):
            attach(self.make(tmp_path, tokenizer), make_prior(tokenizer))

    def test_when_training_begins(self, tmp_path, tokenizer):
        trainer = self.make(tmp_path, tokenizer)
        trainer.add_callback(ToEditCallback(ToEditCollator(make_prior(tokenizer))))
        with pytest.raises(ValueError, match=self.MESSAGE):
            trainer.train()

    def test_at_the_first_batch(self, tmp_path, tokenizer):
        trainer = self.make(tmp_path, tokenizer)
        base = trainer.data_collator
        trainer.data_collator = ToEditCollator(make_prior(tokenizer), base_collator=base)
        with pytest.raises(ValueError, match=self.MESSAGE):
            trainer.train()


def other_tokenizer():
    """Other words for the same ids."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<a>", "<b>"])
    return tokenizer


class TestVocabularies:
    @pytest.mark.parametrize("way", ["collator", "callback", "attach"])
    def test_a_trainee_with_fewer_ids(self, tmp_path, tokenizer, way):
        with pytest.raises(ValueError, match=r"trainee has 300 token ids.*draws among 312"):
            make_trainer(
                tmp_path, tokenizer, way=way, model=make_trainee(vocab_size=300)
            )[0].train()  # fmt: skip

    def test_padding_of_the_vocabulary_is_never_drawn(self, tmp_path, tokenizer):
        trainer, collator = make_trainer(
            tmp_path, tokenizer, way="callback", model=make_trainee(vocab_size=len(tokenizer)),
            max_steps=1,
        )  # fmt: skip
        trainer.train()
        assert collator.stats["changed"] > 0

    def test_without_a_tokenizer_all_ids_may_be_drawn(self, tmp_path):
        trainer = Trainer(
            make_trainee(vocab_size=312), TrainingArguments(str(tmp_path), **QUIET),
            train_dataset=dataset([TEXTS[0]] * 4, labels=[TEXTS[0]] * 4),
        )  # fmt: skip
        with pytest.raises(ValueError, match=r"trainee has 312 token ids.*draws among 320"):
            attach(trainer, make_prior())

    def test_another_tokenizer_that_only_the_base_collator_has(self, tmp_path, tokenizer):
        prior = Prior(make_llama(), other_tokenizer())
        changed = make_tokenizer()
        changed.add_tokens(["<b>", "<a>"])
        trainer = Trainer(
            make_trainee(), TrainingArguments(str(tmp_path), **QUIET),
            DataCollatorForLanguageModeling(changed, mlm=False), dataset(TEXTS),
        )  # fmt: skip
        attach(trainer, prior, AGGRESSIVE)
        with pytest.raises(ValueError, match=r"is '<b>' to the trainee and '<a>' to the prior"):
            trainer.train()

    def test_another_tokenizer_that_lies_beside_the_trainee(self, tmp_path, tokenizer):
        make_trainee().save_pretrained(tmp_path / "model")
        model = type(make_trainee()).from_pretrained(tmp_path / "model")
        assert find_tokenizer(model, []) is None
        changed = make_tokenizer()
        changed.add_tokens(["<b>", "<a>"])
        changed.save_pretrained(tmp_path / "model")
        assert find_tokenizer(model, []).get_vocab() == changed.get_vocab()
        trainer = Trainer(
            model, TrainingArguments(str(tmp_path), **QUIET),
            train_dataset=dataset([TEXTS[0]] * 4, labels=[TEXTS[0]] * 4),
        )  # fmt: skip
        attach(trainer, Prior(make_llama(), other_tokenizer()), AGGRESSIVE)
        with pytest.raises(ValueError, match=r"is '<b>' to the trainee and '<a>' to the prior"):
            trainer.train()

    def test_a_perplexity_above_the_vocabulary_is_said_once(self, tmp_path, tokenizer, caplog):
        """A prior that is sure, and wrong."""
        prior = Prior(make_llama(seed=3, sharpness=40.0), tokenizer)
        trainer, _ = make_trainer(tmp_path, tokenizer, way="callback", prior=prior)
        with caplog.at_level(logging.WARNING, "toedit_collate"):
            trainer.train()
        logged = [r.message for r in caplog.records if "prior's perplexity" in r.message]
        assert len(logged) == 1
        assert "guessing among its 320 ids" in logged[0]


def test_a_perplexity_above_the_vocabulary_is_said_of_a_plain_loop_too(tokenizer, caplog):
    collator = ToEditCollator(Prior(make_llama(seed=3, sharpness=40.0), tokenizer), AGGRESSIVE)
    for _ in range(2):
        collator([{"input_ids": TEXTS[0]}]).to("cpu")
        assert collator.stats["prior_perplexity"] > 320
    (logged,) = [r.message for r in caplog.records]
    assert "guessing among its 320 ids" in logged


def test_a_run_that_can_edit_nothing_says_so(tmp_path, tokenizer, caplog):
    trainer, _ = make_trainer(
        tmp_path, tokenizer, way="callback",
        policy=AGGRESSIVE.replace(protected_token_ids=tuple(range(320))),
    )  # fmt: skip
    trainer.train()
    logged = [r.message for r in caplog.records if r.name == "toedit_collate"]
    assert len([m for m in logged if "special or protected" in m]) == 1
