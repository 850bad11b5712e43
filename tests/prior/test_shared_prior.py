"""A prior that is the trainee's own frozen base: it leaves no trace, and does not move."""

import functools

import pytest
import torch
from conftest import likely_ids, make_llama
from peft import get_peft_model
from trainees import (
    AGGRESSIVE,
    IDLE,
    Recorder,
    assert_same_weights,
    by_first_token,
    counted_passes,
    dataset,
    documents,
    logprobs,
    lora,
    make_trainee,
    make_trainer,
    move_adapters,
    numbers_logged,
    weights,
)

from toedit_collate import EditPolicy, Prior, ToEditCollator

TEXTS = documents(8)


def make_lora_trainee(seed=1, **settings):
    torch.manual_seed(seed)
    return get_peft_model(make_trainee(seed), lora(**settings))


def freeze_lora_a(model):
    """As LoRA-FA does."""
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)


def flags(model):
    """What scoring must leave as it was."""
    return (
        {name: module.training for name, module in model.named_modules()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: parameter.grad for name, parameter in model.named_parameters()},
        {
            name: (module._disable_adapters, module._active_adapter)
            for name, module in model.named_modules()
            if hasattr(module, "_disable_adapters")
        },
    )


@pytest.fixture(scope="module")
def ids():
    return likely_ids(make_trainee(), 3, 20)


SETTINGS = {
    "plain": ({}, {}),
    "dropout": ({"lora_dropout": 0.3}, {}),
    "checkpointing": ({"lora_dropout": 0.1}, {"use_reentrant": False}),
    "reentrant checkpointing": ({"lora_dropout": 0.1}, {"use_reentrant": True}),
}


def train(folder, tokenizer, settings, *, way=None, kind="Trainer", prepare=None, **arguments):
    """Train with LoRA; with a `way`, through a shared prior that selects nothing."""
    adapter, checkpointing = SETTINGS[settings]
    model = make_lora_trainee(**adapter)
    if prepare is not None:
        prepare(model)
    prior = Prior.shared(model) if way else None
    arguments = {
        "learning_rate": 1e-2, "policy": IDLE, "way": way, "prior": prior,
        "gradient_checkpointing": bool(checkpointing), "train": dataset(TEXTS), **arguments,
    }  # fmt: skip
    if checkpointing:
        arguments["gradient_checkpointing_kwargs"] = checkpointing
    trainer, collator = make_trainer(folder, tokenizer, kind=kind, model=model, **arguments)
    if not way:
        trainer.train()
        return trainer
    with counted_passes(prior) as passes:
        trainer.train()
    assert len(passes) == collator.stats["batches"] > 0
    assert collator.stats["scored"] > 0
    assert collator.stats["selected"] == 0
    return trainer


def assert_same_training(ours, theirs):
    assert numbers_logged(ours, "loss")
    for name in ("loss", "grad_norm"):
        assert [e[name] for e in ours.state.log_history if name in e] == [
            e[name] for e in theirs.state.log_history if name in e
        ]
    assert_same_weights(weights(ours.model), weights(theirs.model))
    moved = {name: p for name, p in weights(ours.model).items() if "lora_B" in name}
    assert all(p.abs().max() > 0 for p in moved.values())


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tokenizer):
    """Runs without a prior, each made once."""

    @functools.cache
    def get(settings):
        return train(tmp_path_factory.mktemp("plain"), tokenizer, settings)

    return get


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("way", ["collator", "callback"])
def test_scoring_leaves_training_bit_for_bit(tmp_path, tokenizer, plain, settings, way):
    assert_same_training(train(tmp_path, tokenizer, settings, way=way), plain(settings))


@pytest.mark.parametrize("settings", ["dropout", "reentrant checkpointing"])
def test_with_accumulation_embedding_noise_and_evaluation(tmp_path, tokenizer, settings):
    more = {
        "gradient_accumulation_steps": 2, "neftune_noise_alpha": 5, "eval_strategy": "steps",
        "eval_steps": 1, "trainer_arguments": {"eval_dataset": dataset(documents(4, seed=3))},
    }  # fmt: skip
    plain = train(tmp_path, tokenizer, settings, **more)
    ours = train(tmp_path, tokenizer, settings, way="collator", **more)
    assert_same_training(ours, plain)
    assert numbers_logged(ours, "eval_") == numbers_logged(plain, "eval_")


def test_attention_dropout_consumes_no_random_numbers(tmp_path, tokenizer, plain):
    def prepare(model):
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.2

    expected = train(tmp_path, tokenizer, "plain", prepare=prepare)
    assert numbers_logged(expected, "loss") != numbers_logged(plain("plain"), "loss")
    ours = train(tmp_path, tokenizer, "plain", way="collator", prepare=prepare)
    assert_same_training(ours, expected)


def test_parameters_that_the_user_froze_stay_frozen(tmp_path, tokenizer):
    plain = train(tmp_path, tokenizer, "dropout", prepare=freeze_lora_a)
    ours = train(tmp_path, tokenizer, "dropout", way="callback", prepare=freeze_lora_a)
    assert_same_training(ours, plain)
    frozen = [p.requires_grad for name, p in ours.model.named_parameters() if "lora_A" in name]
    assert frozen
    assert not any(frozen)


@pytest.mark.parametrize("settings", ["dropout", "checkpointing"])
def test_sft_leaves_training_bit_for_bit(tmp_path, tokenizer, settings):
    plain = train(tmp_path, tokenizer, settings, kind="SFTTrainer")
    ours = train(tmp_path, tokenizer, settings, kind="SFTTrainer", way="attach")
    assert_same_training(ours, plain)


@pytest.mark.parametrize("adapter", [None, "fixed"])
@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"]])
def test_every_flag_is_left_as_it_was(ids, adapter, modules_to_save):
    model = make_lora_trainee(modules_to_save=modules_to_save)
    model.add_adapter("fixed", lora())
    model.set_adapter("default")
    freeze_lora_a(model)
    # A mixture of modes, as when parts of a model are kept in eval by their owner.
    model.train()
    model.base_model.model.model.layers[0].self_attn.eval()
    model.base_model.model.model.norm.weight.grad = torch.ones(32)
    before = flags(model)
    assert {True, False} <= set(before[0].values())
    prior = Prior.shared(model, adapter=adapter)
    assert flags(model) == before
    logprobs(prior, ids)
    assert flags(model) == before


def test_flags_are_left_as_they_were_after_an_error(ids, monkeypatch):
    model = make_lora_trainee().train()
    prior = Prior.shared(model)
    before = flags(model)

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.base_model.model.model, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        logprobs(prior, ids)
    assert flags(model) == before


@pytest.mark.parametrize(
    "settings", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head", "embed_tokens"]}]
)
def test_scores_are_those_of_the_pristine_base(ids, settings):
    model = make_lora_trainee(**settings)
    prior = Prior.shared(model)
    move_adapters(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter))
    expected = logprobs(Prior(make_trainee()), ids)
    assert torch.equal(logprobs(prior, ids), expected)
    with torch.no_grad():
        trained = model.eval()(input_ids=ids).logits
    assert not torch.allclose(trained, make_trainee()(input_ids=ids).logits, atol=1e-2)


def test_scores_do_not_move_in_training(tmp_path, tokenizer, ids):
    model = make_lora_trainee()
    prior = Prior.shared(model)
    before = logprobs(prior, ids)
    trainer, collator = make_trainer(
        tmp_path, tokenizer, way="collator", model=model, prior=prior, learning_rate=1e-1,
        policy=EditPolicy(threshold=0.01, exclude_original=True), train=dataset(TEXTS),
    )  # fmt: skip
    trainer.train()
    assert collator.stats["changed"] > 0
    assert max(p.abs().max() for n, p in model.named_parameters() if "lora_B" in n) > 0.1
    assert torch.equal(logprobs(prior, ids), before)


def test_a_frozen_second_adapter_scores(tmp_path, tokenizer, ids):
    """The edits are those of a separate prior with that adapter; only `default` is trained."""
    donor = move_adapters(make_lora_trainee(), seed=5)
    donor.save_pretrained(tmp_path / "adapter")
    model = make_lora_trainee(lora_dropout=0.2)
    model.load_adapter(tmp_path / "adapter", adapter_name="fixed", is_trainable=False)
    model.train()
    prior = Prior.shared(model, adapter="fixed")
    separate = Prior(move_adapters(make_lora_trainee(), seed=5))
    assert torch.allclose(logprobs(prior, ids), logprobs(separate, ids), atol=1e-6)
    assert not torch.allclose(logprobs(prior, ids), logprobs(Prior.shared(model), ids), atol=0.1)

    before = weights(model)
    policy = AGGRESSIVE.replace(threshold=0.004)
    rows = []
    for scorer in (prior, separate):
        trainer, collator = make_trainer(
            tmp_path, tokenizer, way="collator", model=model, prior=scorer, policy=policy,
            learning_rate=1e-2, train=dataset(TEXTS),
        )  # fmt: skip
        recorder = Recorder(model)
        trainer.train()
        recorder.handle.remove()
        assert collator.stats["changed"] > 0
        rows.append(by_first_token(recorder.rows(training=True)))
    assert rows[0] == rows[1]
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name and ".default." in name}


def test_mixed_precision_scores_as_the_trainee_computes(tmp_path, tokenizer):
    for way in ("collator", "callback"):
        model = make_lora_trainee()
        prior = Prior.shared(model)
        dtypes = set()
        model.base_model.model.model.layers[0].mlp.register_forward_hook(
            lambda module, args, out, seen=dtypes: seen.add((torch.is_grad_enabled(), out.dtype))
        )
        trainer, collator = make_trainer(
            tmp_path, tokenizer, way=way, model=model, prior=prior, policy=IDLE, bf16=True,
            max_steps=1,
        )  # fmt: skip
        trainer.train()
        assert collator.stats["scored"] > 0
        assert dtypes == {(True, torch.bfloat16), (False, torch.bfloat16)}


class TestRefusals:
    @pytest.mark.parametrize("way", ["collator", "callback", "attach"])
    def test_full_fine_tuning(self, tmp_path, tokenizer, way):
        model = make_trainee()
        trainer, _ = make_trainer(
            tmp_path, tokenizer, way=way, model=model, prior=Prior.shared(model)
        )
        with pytest.raises(ValueError, match=r"is trained, but is part of.*train with LoRA"):
            trainer.train()

    def test_a_tokenizer_in_the_place_of_an_adapter(self, tokenizer):
        with pytest.raises(TypeError, match=r"name of a frozen adapter.*tokenizer=\.\.\."):
            Prior.shared(make_lora_trainee(), tokenizer)

    def test_an_adapter_that_is_not_there(self):
        with pytest.raises(ValueError, match=r"adapter 'old' is not in the model.*\['default'\]"):
            Prior.shared(make_lora_trainee(), adapter="old")
        with pytest.raises(ValueError, match=r"adapter 'old' is not in the model, which has none"):
            Prior.shared(make_llama(), adapter="old")

    def test_the_adapter_in_training(self):
        with pytest.raises(ValueError, match=r"is trained, but is part of.*frozen adapter"):
            Prior.shared(make_lora_trainee(), adapter="default")

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("bias", ["all", "lora_only"])
    def test_trained_biases(self, bias):
        model = make_trainee(attention_bias=True)
        with pytest.raises(ValueError, match=r"bias.*is trained.*bias='none'"):
            Prior.shared(get_peft_model(model, lora(bias=bias)))

    def test_a_merged_adapter(self, ids):
        model = make_lora_trainee()
        prior = Prior.shared(model)
        model.merge_adapter()
        for attempt in (lambda: Prior.shared(model), lambda: logprobs(prior, ids)):
            with pytest.raises(ValueError, match=r"is merged.*unmerge_adapter\(\)"):
                attempt()
        model.unmerge_adapter()
        logprobs(prior, ids)

    def test_parts_of_the_base_that_were_unfrozen_later(self, ids):
        model = make_lora_trainee()
        prior = Prior.shared(model)
        model.base_model.model.lm_head.weight.requires_grad_(True)
        with pytest.raises(ValueError, match=r"lm_head.*is trained, but is part of"):
            logprobs(prior, ids)

    def test_a_shared_prior_without_a_tokenizer_gets_it_from_the_trainer(self, tmp_path, tokenizer):
        model = make_lora_trainee()
        prior = Prior.shared(model)
        trainer, _ = make_trainer(tmp_path, tokenizer, model=model, max_steps=1)
        trainer.data_collator = ToEditCollator(prior, base_collator=trainer.data_collator)
        trainer.train()
        assert prior.tokenizer is tokenizer
        assert set(tokenizer.all_special_ids) <= set(prior.special_ids)
