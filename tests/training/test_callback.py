"""ToEditCallback and attach(): what they log, and what they refuse."""

import copy

import pytest
import torch
from conftest import make_llama, make_tokenizer
from peft import get_peft_model
from trainees import (
    AGGRESSIVE,
    QUIET,
    Logs,
    Recorder,
    by_first_token,
    dataset,
    documents,
    lora,
    make_prior,
    make_trainee,
    make_trainer,
)
from transformers import (
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from toedit_collate import Prior, ToEditCallback, ToEditCollator, attach

TEXTS = documents(8)
KEYS = {
    "toedit/selected_share", "toedit/changed_share", "toedit/prior_perplexity",
    "toedit/tokens_per_second", "toedit/time_share",
}  # fmt: skip


def ours(logs):
    return {key: value for key, value in logs.items() if key.startswith("toedit/")}


def different_tokenizer():
    """The same number of tokens, two of which have changed places."""
    vocab = make_tokenizer().get_vocab()
    tokenizer = make_tokenizer()
    data = tokenizer.backend_tokenizer.to_str()
    first, second = (token for token, i in sorted(vocab.items(), key=lambda x: x[1])[10:12])
    for old, new in ((first, "\0"), (second, first), ("\0", second)):
        data = data.replace(f'"{old}":', f'"{new}":')
    changed = copy.deepcopy(tokenizer)
    changed._tokenizer = type(tokenizer.backend_tokenizer).from_str(data)
    assert changed.get_vocab() != vocab
    return changed, first, second


class TestMetrics:
    @pytest.mark.parametrize("kind", ["Trainer", "SFTTrainer"])
    @pytest.mark.parametrize("way", ["both", "callback", "attach"])
    def test_reach_the_history_and_a_tracker_that_was_there_before(
        self, tmp_path, tokenizer, kind, way
    ):
        tracker = Logs()
        trainer, _ = make_trainer(
            tmp_path, tokenizer, kind=kind, way=way, callbacks=[tracker], train=dataset(TEXTS),
            eval_strategy="steps", eval_steps=2,
            trainer_arguments={"eval_dataset": dataset(TEXTS)},
        )  # fmt: skip
        trainer.train()
        for history in (trainer.state.log_history, tracker.logged):
            steps = [entry for entry in history if "loss" in entry]
            assert len(steps) == 4
            assert all(set(ours(entry)) == KEYS for entry in steps)
            others = [entry for entry in history if "loss" not in entry]
            assert len(others) == 3  # two evaluations, and the summary
            assert not any(ours(entry) for entry in others)
        assert [ours(entry) for entry in tracker.logged] == [
            ours(entry) for entry in trainer.state.log_history
        ]

    def test_are_ratios_of_sums_since_the_last_log(self, tmp_path, tokenizer):
        """Four batches of different lengths: their shares must not be averaged as equals."""
        logged, stats = {}, {}
        for steps in (1, 4):
            trainer, collator = make_trainer(
                tmp_path, tokenizer, way="callback", train=dataset(TEXTS), logging_steps=steps
            )
            trainer.train()
            logged[steps] = [ours(e) for e in trainer.state.log_history if "loss" in e]
            stats[steps] = collator.stats
        whole = logged[4][0]
        assert whole["toedit/changed_share"] == stats[4]["changed_share"] > 0
        assert whole["toedit/selected_share"] == stats[4]["selected_share"]
        assert whole["toedit/prior_perplexity"] == pytest.approx(stats[4]["prior_perplexity"])
        shares = [each["toedit/changed_share"] for each in logged[1]]
        assert len(set(shares)) > 1
        assert min(shares) < whole["toedit/changed_share"] < max(shares)
        counts = {key: stats[1][key] for key in ("scored", "selected", "changed", "tokens")}
        assert counts == {key: stats[4][key] for key in counts}

    def test_begin_anew_with_each_run(self, tmp_path, tokenizer):
        trainer, collator = make_trainer(
            tmp_path, tokenizer, way="both", train=dataset(TEXTS), logging_steps=4
        )
        collator([{"input_ids": TEXTS[0]}]).to("cpu")  # edited before, and not in training
        shares = []
        for _ in range(2):
            trainer.train()
            shares += [e["toedit/changed_share"] for e in trainer.state.log_history if "loss" in e]
        assert len(shares) == 2
        assert shares[0] == shares[1] != collator.stats["changed_share"]

    def test_dropped_share_is_logged_where_tokens_are_dropped(self, tmp_path, tokenizer):
        policy = AGGRESSIVE.replace(threshold=0.6, drop_below=1e-3)
        trainer, collator = make_trainer(
            tmp_path, tokenizer, way="callback", policy=policy, train=dataset(TEXTS),
            logging_steps=4,
        )  # fmt: skip
        trainer.train()
        (entry,) = (ours(e) for e in trainer.state.log_history if "loss" in e)
        assert set(entry) == KEYS | {"toedit/dropped_share"}
        assert entry["toedit/dropped_share"] == collator.stats["dropped_share"] > 0

    def test_nothing_to_score_is_no_number(self, tmp_path, tokenizer):
        """Shares of nothing are left out rather than logged as NaN."""
        trainer, collator = make_trainer(
            tmp_path, tokenizer, way="callback", max_steps=1,
            policy=AGGRESSIVE.replace(protected_token_ids=tuple(range(320))),
        )  # fmt: skip
        trainer.train()
        assert collator.stats["scored"] == 0
        (entry,) = (ours(e) for e in trainer.state.log_history if "loss" in e)
        assert set(entry) == {"toedit/tokens_per_second", "toedit/time_share"}


class Counts(TrainerCallback):
    def __init__(self):
        self.begun = self.steps = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun += 1

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def test_other_callbacks_are_called_as_before(tmp_path, tokenizer):
    counts = [Counts(), Counts()]
    trainer, collator = make_trainer(tmp_path, tokenizer, way="callback", callbacks=counts[:1])
    trainer.add_callback(counts[1])
    number = len(trainer.callback_handler.callbacks)
    trainer.train()
    assert [(each.begun, each.steps) for each in counts] == [(1, 4), (1, 4)]
    assert len(trainer.callback_handler.callbacks) == number
    assert isinstance(trainer.callback_handler.callbacks[0], ToEditCallback)
    assert collator.stats["batches"] == 4


def test_a_prior_and_a_collator_without_a_tokenizer_are_enough(tmp_path, tokenizer):
    prior = Prior(make_llama())
    callback = ToEditCallback(ToEditCollator(prior, AGGRESSIVE))
    trainer, _ = make_trainer(tmp_path, tokenizer, callbacks=[callback])
    trainer.train()
    assert callback.collator.stats["changed"] > 0
    assert prior.tokenizer is tokenizer


def test_a_trainer_without_a_tokenizer(tmp_path, tokenizer):
    trainer = Trainer(
        make_trainee(),
        TrainingArguments(str(tmp_path), **QUIET),
        DataCollatorForLanguageModeling(tokenizer, mlm=False),
        dataset(TEXTS),
    )
    collator = attach(trainer, Prior(make_llama()), AGGRESSIVE)
    trainer.train()
    assert collator.stats["changed"] > 0


def test_one_callback_in_two_trainers(tmp_path, tokenizer):
    collator = ToEditCollator(make_prior(tokenizer), AGGRESSIVE)
    callback = ToEditCallback(collator)
    for run in (1, 2):
        trainer, _ = make_trainer(tmp_path, tokenizer, callbacks=[callback], logging_steps=4)
        trainer.train()
        assert collator.stats["batches"] == 4 * run
        (entry,) = (ours(e) for e in trainer.state.log_history if "loss" in e)
        assert entry["toedit/changed_share"] == collator.stats["changed_share"]


def test_attach_keeps_the_collator_of_the_trainer(tmp_path, tokenizer):
    trainer, _ = make_trainer(tmp_path, tokenizer)
    base = trainer.data_collator
    collator = attach(trainer, make_prior(), AGGRESSIVE)
    assert trainer.data_collator is collator
    assert collator.base_collator is base
    assert collator.policy is AGGRESSIVE
    assert collator.tokenizer is tokenizer


class TestRefusals:
    def test_no_collator(self, tokenizer):
        with pytest.raises(TypeError, match=r"must be a ToEditCollator.*got Prior; write ToEditC"):
            ToEditCallback(make_prior(tokenizer))

    def test_attaching_twice(self, tmp_path, tokenizer):
        trainer, _ = make_trainer(tmp_path, tokenizer, way="attach")
        with pytest.raises(ValueError, match="is a ToEditCollator already; attach once"):
            attach(trainer, make_prior(tokenizer))

    def test_attaching_to_a_trainer_with_the_collator(self, tmp_path, tokenizer):
        trainer, _ = make_trainer(tmp_path, tokenizer, way="collator")
        with pytest.raises(ValueError, match="attach once"):
            attach(trainer, make_prior(tokenizer))

    @pytest.mark.parametrize("way", ["attach", "collator", "callback"])
    def test_two_collators(self, tmp_path, tokenizer, way):
        callback = ToEditCallback(ToEditCollator(make_prior(tokenizer)))
        trainer, _ = make_trainer(tmp_path, tokenizer, way=way, callbacks=[callback])
        with pytest.raises(ValueError, match=r"has another one; pass the same to both"):
            trainer.train()

    @pytest.mark.parametrize("way", ["collator", "callback"])
    def test_another_tokenizer_at_the_start(self, tmp_path, tokenizer, way):
        other, first, second = different_tokenizer()
        collator = ToEditCollator(
            Prior(make_llama(), other),
            base_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )
        trainer, _ = make_trainer(tmp_path, tokenizer)
        if way == "collator":
            trainer.data_collator = collator
        else:
            trainer.add_callback(ToEditCallback(collator))
        with pytest.raises(ValueError) as caught:  # noqa: PT011  the tokens go into a pattern badly
            trainer.train()
        message = str(caught.value)
        assert f"id 10 is {first!r} to the trainee and {second!r} to the prior" in message
        assert "use a prior with the trainee's tokenizer" in message

    def test_another_tokenizer_when_attaching(self, tmp_path, tokenizer):
        trainer, _ = make_trainer(tmp_path, tokenizer)
        with pytest.raises(ValueError, match=r"id 10 is .* to the trainee and .* to the prior"):
            attach(trainer, Prior(make_llama(), different_tokenizer()[0]))

    @pytest.mark.parametrize("way", ["collator", "callback", "attach"])
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_a_prior_that_is_the_model_in_training(self, tmp_path, tokenizer, way, wrapped):
        base = make_trainee()
        prior = Prior(base, tokenizer)
        model = get_peft_model(base, lora()) if wrapped else base
        before = copy.deepcopy(model.state_dict())
        trainer, _ = make_trainer(tmp_path, tokenizer, way=way, model=model, prior=prior)
        with pytest.raises(ValueError, match=r"the prior is the model in training.*Prior\.shared"):
            trainer.train()
        assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


class TestMakingTheCollatorWhenTrainingBegins:
    @staticmethod
    def make(folder, tokenizer, made, **arguments):
        def make_collator(model):
            made.append(model)
            return ToEditCollator(Prior.shared(model), AGGRESSIVE)

        callback = ToEditCallback(make_collator, arguments.pop("refresh", None))
        model = get_peft_model(make_llama(), lora())
        trainer, _ = make_trainer(
            folder, tokenizer, model=model, train=dataset(TEXTS), callbacks=[callback], **arguments
        )
        return trainer, callback

    def test_with_the_base_of_the_trainee(self, tmp_path, tokenizer):
        made = []
        trainer, callback = self.make(tmp_path, tokenizer, made)
        assert made == []
        with pytest.raises(RuntimeError, match="is made when training begins"):
            _ = callback.collator
        recorder = Recorder(trainer.model)
        trainer.train()
        assert made == [trainer.model]
        rows = by_first_token(recorder.rows(training=True))
        originals = by_first_token(TEXTS)
        assert all(row != originals[number] for number, row in rows.items())
        assert len(rows) == len(TEXTS)
        assert callback.collator.prior.is_shared
        entry = next(e for e in trainer.state.log_history if "loss" in e)
        assert entry["toedit/changed_share"] > 0
        trainer.train()  # the same trainee: it is not made again
        assert len(made) == 1

    def test_it_edits_as_attach_does(self, tmp_path, tokenizer):
        given = []
        for attached in (False, True):
            if attached:
                trainer, _ = make_trainer(
                    tmp_path, tokenizer, model=get_peft_model(make_llama(), lora()),
                    train=dataset(TEXTS),
                )  # fmt: skip
                attach(trainer, Prior.shared(trainer.model), AGGRESSIVE)
            else:
                trainer, _ = self.make(tmp_path, tokenizer, [])
            recorder = Recorder(trainer.model)
            trainer.train()
            given.append(recorder.batches(training=True))
        assert given[0] == given[1]

    def test_with_refresh_and_resumed(self, tmp_path, tokenizer):
        settings = {"refresh": 2, "save_strategy": "steps", "save_steps": 3}
        trainer, _ = self.make(tmp_path, tokenizer, [], **settings)
        trainer.train()
        trainer, callback = self.make(tmp_path, tokenizer, [], **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert callback.collator.prior.generation == 2

    def test_for_another_trainee_it_is_made_again(self, tmp_path, tokenizer):
        made = []
        first, callback = self.make(tmp_path, tokenizer, made, max_steps=1)
        first.train()
        second, _ = make_trainer(
            tmp_path, tokenizer, model=get_peft_model(make_llama(), lora()),
            callbacks=[callback], max_steps=1,
        )  # fmt: skip
        second.train()
        assert made == [first.model, second.model]

    def test_something_else_is_refused(self, tmp_path, tokenizer):
        trainer, _ = make_trainer(tmp_path, tokenizer, callbacks=[ToEditCallback(lambda model: 3)])
        with pytest.raises(TypeError, match=r"must be a ToEditCollator.*got int"):
            trainer.train()
