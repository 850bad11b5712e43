"""A shared prior scores as the pretrained model did, or is refused."""

import pytest
import torch
from conftest import likely_ids, make_llama
from peft import LoraConfig, PromptTuningConfig, TrainableTokensConfig, get_peft_model
from trainees import logprobs, lora, make_trainee

from toedit_collate import Prior

IDS = likely_ids(make_trainee(), 2, 16)
SOME = sorted(set(IDS.flatten().tolist()))[:6]


def train(model, steps=3):
    """A few real steps, so that whatever can move has moved."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=5.0)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


KINDS = {
    "rows of the embeddings": lora(trainable_token_indices=SOME),
    "rows of both": lora(trainable_token_indices={"embed_tokens": SOME[:4], "lm_head": SOME[2:]}),
    "rows alone": TrainableTokensConfig(token_indices=SOME),
    "embeddings": lora(modules_to_save=["embed_tokens"]),
    "head": lora(modules_to_save=["lm_head"]),
    "LoRA on the head": lora(target_modules=["q_proj", "lm_head"]),
    "LoRA on the embeddings": lora(target_modules=["q_proj", "embed_tokens"]),
    "gaussian": lora(init_lora_weights="gaussian"),
    "random": lora(init_lora_weights=False),
    "orthogonal": lora(init_lora_weights="orthogonal"),
    "rank-stabilised": lora(use_rslora=True),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_pretrained_model(kind, tied):
    base = {"tie_word_embeddings": tied}
    expected = logprobs(Prior(make_trainee(**base)), IDS)
    torch.manual_seed(0)
    model = get_peft_model(make_trainee(**base), KINDS[kind])
    prior = Prior.shared(model)
    assert torch.allclose(logprobs(prior, IDS), expected, atol=1e-5)
    before = model.eval()(input_ids=IDS).logits.detach()
    train(model)
    assert not torch.allclose(model.eval()(input_ids=IDS).logits, before, atol=1e-2)
    assert torch.allclose(logprobs(prior, IDS), expected, atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora"])
def test_inits_that_take_from_the_base_are_refused(init):
    model = get_peft_model(make_trainee(), lora(init_lora_weights=init))
    with pytest.raises(ValueError, match=rf"init_lora_weights='{init}'.*Prior\.from_pretrained"):
        Prior.shared(model)


@pytest.mark.parametrize("init", ["loftq", "corda", "lora_ga", "something_new"])
def test_inits_that_need_data_are_refused_by_their_name(init):
    model = get_peft_model(make_trainee(), lora())
    model.peft_config["default"].init_lora_weights = init
    with pytest.raises(ValueError, match=rf"init_lora_weights='{init}'"):
        Prior.shared(model)


def test_repeated_layers_are_refused():
    model = get_peft_model(make_trainee(), lora(layer_replication=[[0, 2], [0, 2]]))
    with pytest.raises(ValueError, match=r"layer_replication=.*repeats layers"):
        Prior.shared(model)


def test_put_on_after_the_prior_was_made():
    """A Trainer puts PEFT on its model itself: seen at the first batch."""
    model = make_trainee()
    prior = Prior.shared(model)
    wrapped = get_peft_model(model, lora(init_lora_weights="olora"))
    prior.model = wrapped
    with pytest.raises(ValueError, match="init_lora_weights='olora'"):
        logprobs(prior, IDS)


def test_a_learned_prompt_is_refused():
    model = get_peft_model(make_trainee(), KINDS["prompt"])
    with pytest.raises(ValueError, match=r"PEFT put around .*a learned prompt.*get_base_model"):
        Prior(model)


class TestLaterChanges:
    """The first score was right; each batch looks again."""

    @pytest.fixture
    def scored(self):
        model = get_peft_model(make_trainee(), lora())
        prior = Prior.shared(model)
        logprobs(prior, IDS)
        return model, prior

    def test_merged(self, scored):
        model, prior = scored
        model.merge_adapter()
        with pytest.raises(ValueError, match=r"is merged.*unmerge_adapter\(\)"):
            logprobs(prior, IDS)

    def test_unfrozen(self, scored):
        model, prior = scored
        model.base_model.model.lm_head.weight.requires_grad_(True)
        with pytest.raises(ValueError, match=r"lm_head.*is trained, but is part of"):
            logprobs(prior, IDS)

    def test_a_second_adapter_of_the_trainee_is_no_reason(self, scored):
        model, prior = scored
        before = logprobs(prior, IDS)
        model.add_adapter("other", LoraConfig(r=2, target_modules=["k_proj"]))
        model.set_adapter("other")
        assert torch.equal(logprobs(prior, IDS), before)

    def test_a_separate_prior_that_is_trained(self):
        prior = Prior(make_llama())
        logprobs(prior, IDS)
        prior.model.lm_head.weight.requires_grad_(True)
        with pytest.raises(ValueError, match=r"lm_head\.weight.*requires gradients since"):
            logprobs(prior, IDS)


@pytest.mark.parametrize("shared", [False, True])
def test_the_callers_autocast_decides_nothing(shared):
    model = make_trainee()
    prior = Prior.shared(get_peft_model(model, lora())) if shared else Prior(model)
    expected = logprobs(prior, IDS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logprobs(prior, IDS), expected)
        assert torch.is_autocast_enabled("cpu")
