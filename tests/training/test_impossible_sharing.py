"""A shared prior that can never be swapped, or of another model: refused when training begins."""

import copy

import pytest
import torch
from conftest import make_llama
from peft import AdaLoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from peft.tuners.lora import LoraModel
from trainees import AGGRESSIVE, dataset, documents, logprobs, lora, make_trainer
from transformers import Trainer
from trl import SFTTrainer

from toedit_collate import Prior, ToEditCallback, ToEditCollator, attach

TEXTS = dataset(documents(4))
TIED = {"tie_word_embeddings": True}


def peft_model(llama=None, **settings):
    return get_peft_model(make_llama(**llama or {}), lora(**settings))


def add_adapter():
    model = make_llama()
    model.add_adapter(lora())
    return model


EMBEDDINGS = {"target_modules": ["embed_tokens", "q_proj"]}
UNSWAPPABLE = {
    "head": (lambda: peft_model(target_modules=["q_proj", "lm_head"]), 1, "vocabulary projection"),
    "tied tokens": (
        lambda: peft_model(TIED, trainable_token_indices=[5, 6]), 1, "vocabulary projection",
    ),
    "bias": (lambda: peft_model(bias="lora_only"), "epoch", "only 1 adapter with bias"),
    "tied embeddings": (
        lambda: peft_model(TIED, **EMBEDDINGS, ensure_weight_tying=True), 1, "does not fit",
    ),
    "add_adapter": (add_adapter, 1, "make the model with peft.get_peft_model"),
}  # fmt: skip


def picture(model):
    """All that an adapter for the prior could have left."""
    return (
        [(name, id(module), module.training) for name, module in model.named_modules()],
        [(name, id(weight), weight.requires_grad) for name, weight in model.named_parameters()],
        list(model.peft_config),
        model.active_adapters() if callable(model.active_adapters) else model.active_adapters,
    )


@pytest.mark.parametrize("name", UNSWAPPABLE)
@pytest.mark.parametrize("prior_is", ["shared", "separate"])
def test_swaps_that_can_never_work(tmp_path, tokenizer, prior_is, name):
    make, refresh, reason = UNSWAPPABLE[name]
    model = make()
    if prior_is == "separate" and name in ("bias", "add_adapter"):
        pytest.skip("a separate prior holds one adapter only, or names it otherwise")
    llama = {"tie_word_embeddings": model.config.tie_word_embeddings}
    prior = Prior.shared(model) if prior_is == "shared" else Prior(make_llama(**llama), tokenizer)
    trainer, _ = make_trainer(
        tmp_path, tokenizer, model=model, train=TEXTS, max_steps=2, save_strategy="epoch"
    )
    collator = attach(trainer, prior, AGGRESSIVE, refresh=refresh)
    before = picture(model)
    if prior_is == "separate" and name == "tied embeddings":
        reason = "vocabulary projection"
    with pytest.raises(ValueError, match=f"can never swap.*{reason}"):
        trainer.train()
    assert collator.stats["batches"] == 0
    assert picture(model) == before


SWAPPABLE = {
    # PEFT saves the whole embeddings next to this adapter.
    "embeddings": lambda: peft_model(**EMBEDDINGS),
    "tokens": lambda: peft_model(trainable_token_indices=[5, 6]),
    "weights of the head": lambda: peft_model(modules_to_save=["lm_head"]),
    "weights of tied embeddings": lambda: peft_model(TIED, modules_to_save=["embed_tokens"]),
    "AdaLoRA": lambda: get_peft_model(
        make_llama(), AdaLoraConfig(total_step=8, target_modules=["q_proj", "v_proj"])
    ),
}


@pytest.mark.parametrize("refresh", [1, "save"])
@pytest.mark.parametrize("prior_is", ["shared", "separate"])
@pytest.mark.parametrize("name", SWAPPABLE)
def test_what_can_be_swapped_scores_as_the_trainee_did(
    tmp_path, tokenizer, name, prior_is, refresh
):
    model = SWAPPABLE[name]()
    base = make_llama(tie_word_embeddings=model.config.tie_word_embeddings)
    trainer, _ = make_trainer(
        tmp_path, tokenizer, model=model, train=TEXTS, max_steps=2, learning_rate=0.05,
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    prior = Prior.shared(model) if prior_is == "shared" else Prior(base, tokenizer)
    attach(trainer, prior, AGGRESSIVE, refresh=refresh)
    trainer.train()
    assert prior.generation == 2
    ids = torch.tensor([documents(1)[0]])
    with torch.no_grad():
        plain = model.eval()(input_ids=ids).logits[:, :-1].log_softmax(-1)
    expected = plain.gather(-1, ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(logprobs(prior, ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
@pytest.mark.parametrize("refresh", [1, "save"])
def test_virtual_tokens_are_refused(tmp_path, tokenizer, kind, refresh):
    model = get_peft_model(make_llama(), kind(task_type="CAUSAL_LM", num_virtual_tokens=3))
    trainer, _ = make_trainer(
        tmp_path, tokenizer, model=model, train=TEXTS, max_steps=2, save_strategy="epoch"
    )
    attach(trainer, Prior(make_llama(), tokenizer), AGGRESSIVE, refresh=refresh)
    with pytest.raises(ValueError, match=r"can never swap.*refresh=None"):
        trainer.train()


def test_a_refused_swap_leaves_the_trainee_as_it_was(tmp_path, tokenizer, monkeypatch):
    """Whatever PEFT raises in the middle of adding an adapter; training goes on."""
    model = peft_model()
    trainer, _ = make_trainer(tmp_path, tokenizer, model=model, train=TEXTS, max_steps=2)
    prior = Prior.shared(model)
    attach(trainer, prior, AGGRESSIVE, refresh=1)
    before = picture(model)
    add, seen = LoraModel._create_and_replace, []

    def fail_halfway(self, config, adapter_name, *args, **kwargs):
        seen.append(adapter_name)
        if len(seen) > 2:
            raise AssertionError("no more adapters")
        return add(self, config, adapter_name, *args, **kwargs)

    monkeypatch.setattr(LoraModel, "_create_and_replace", fail_halfway)
    with pytest.raises(ValueError, match=r"can never swap.*no more adapters"):
        trainer.train()
    assert picture(model) == before
    monkeypatch.undo()
    trainer.train()
    assert prior.generation == 2


class Anew(Trainer):
    """Trains a copy of the model that it was given."""

    def __init__(self, *args, model, **kwargs):
        super().__init__(*args, model=copy.deepcopy(model), **kwargs)


OTHERS = {
    "deepcopy": lambda model: {"model": copy.deepcopy(model)},
    "made anew": lambda model: {"model": peft_model()},
    "inside the trainer": lambda model: {"model": model, "trainer_class": Anew},
    "SFTTrainer": lambda model: {
        "model": make_llama(), "kind": "SFTTrainer", "trainer_arguments": {"peft_config": lora()},
    },
}  # fmt: skip


@pytest.mark.parametrize("way", ["attach", "callback"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_shared_prior_of_another_model(tmp_path, tokenizer, name, way):
    model = peft_model()
    trainer, _ = make_trainer(
        tmp_path, tokenizer, way=way, prior=Prior.shared(model), train=TEXTS, **OTHERS[name](model)
    )
    with pytest.raises(ValueError, match="another model than the one in training"):
        trainer.train()


def test_a_model_made_by_model_init(tmp_path, tokenizer):
    trainer, _ = make_trainer(tmp_path, tokenizer, train=TEXTS, trainer_class=FromInit, max_steps=1)
    attach(trainer, Prior.shared(trainer.model), AGGRESSIVE)
    with pytest.raises(ValueError, match="another model than the one in training"):
        trainer.train()


def test_a_model_made_by_model_init_is_shared_by_a_function(tmp_path, tokenizer):
    callback = ToEditCallback(
        lambda model: ToEditCollator(Prior.shared(model), AGGRESSIVE, tokenizer=tokenizer)
    )
    trainer, _ = make_trainer(
        tmp_path, tokenizer, train=TEXTS, trainer_class=FromInit, max_steps=1, callbacks=[callback]
    )
    trainer.train()
    assert callback.collator.stats["changed"] > 0


class FromInit(Trainer):
    def __init__(self, *args, model, **kwargs):
        super().__init__(*args, model_init=lambda: peft_model(), **kwargs)


@pytest.mark.parametrize("kind", [Trainer, SFTTrainer])
def test_peft_put_on_the_shared_model_later(tmp_path, tokenizer, kind):
    base = make_llama()
    prior = Prior.shared(base)
    if kind is SFTTrainer:
        trainer, _ = make_trainer(
            tmp_path, tokenizer, model=base, kind="SFTTrainer", train=TEXTS,
            trainer_arguments={"peft_config": lora()}, max_steps=1,
        )  # fmt: skip
    else:
        model = get_peft_model(base, lora())
        trainer, _ = make_trainer(tmp_path, tokenizer, model=model, train=TEXTS, max_steps=1)
    collator = attach(trainer, prior, AGGRESSIVE)
    trainer.train()
    assert collator.stats["changed"] > 0
