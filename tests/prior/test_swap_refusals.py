"""Checkpoints whose shapes fit and whose numbers would be wrong: the old prior stays."""

import shutil

import pytest
import torch
from conftest import likely_ids, make_llama
from peft import LoraConfig, get_peft_model
from trainees import logprobs, move_adapters

from toedit_collate import Prior
from toedit_collate.training.snapshot import LiveWeights

IDS = likely_ids(make_llama(), 2, 16)


def lora(**settings):
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **settings})


def tuned(seed=1, **settings):
    return move_adapters(get_peft_model(make_llama(), lora(**settings)), seed)


def assert_refused(prior, source, message):
    before = logprobs(prior, IDS)
    generation = prior.generation
    with pytest.raises(ValueError, match=message):
        prior.swap(source)
    assert torch.equal(logprobs(prior, IDS), before)
    assert prior.generation == generation


OTHER_ADAPTERS = {
    "lora_alpha": {"lora_alpha": 32},
    "use_rslora": {"use_rslora": True},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 64}},
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
    "use_dora": {"use_dora": True},
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", OTHER_ADAPTERS)
def test_an_adapter_that_was_made_otherwise(tmp_path, name, shared):
    prior = Prior.shared(get_peft_model(make_llama(), lora())) if shared else Prior(make_llama())
    tuned(1).save_pretrained(tmp_path / "first")
    prior.swap(tmp_path / "first")
    tuned(2, **OTHER_ADAPTERS[name]).save_pretrained(tmp_path / "second")
    assert_refused(prior, tmp_path / "second", rf"other settings.*{name}|differ")


@pytest.mark.parametrize("name", OTHER_ADAPTERS)
def test_its_own_settings_count_where_it_is_the_first(tmp_path, name):
    other = tuned(2, **OTHER_ADAPTERS[name])
    other.save_pretrained(tmp_path)
    prior = Prior(make_llama())
    prior.swap(tmp_path)
    assert torch.allclose(logprobs(prior, IDS), logprobs(Prior(other), IDS), atol=1e-5)


def test_an_adapter_that_would_rewrite_the_base(tmp_path):
    tuned(2, init_lora_weights="olora").save_pretrained(tmp_path)
    assert_refused(Prior(make_llama()), tmp_path, r"init_lora_weights='olora'.*plain LoRA")


def test_an_untied_checkpoint_into_a_tied_prior(tmp_path):
    prior = Prior(make_llama(tie_word_embeddings=True))
    make_llama(1).save_pretrained(tmp_path)
    assert_refused(prior, tmp_path, r"another configuration.*tie_word_embeddings=True")


def test_full_weights_under_an_adapter(tmp_path):
    prior = Prior(tuned())
    make_llama(1).save_pretrained(tmp_path)
    assert_refused(prior, tmp_path, r"the prior's adapter 'default' would stay on.*merge")


CONFIGS = {
    "rope_theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    "scaling": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    "rms_norm_eps": {"rms_norm_eps": 0.1},
    "hidden_act": {"hidden_act": "gelu"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_another_configuration(tmp_path, name):
    make_llama(1, **CONFIGS[name]).save_pretrained(tmp_path)
    field = next(iter(CONFIGS[name]))
    assert_refused(Prior(make_llama()), tmp_path, rf"another configuration.*{field}=")
    assert_refused(Prior(make_llama()), LiveWeights(make_llama(1, **CONFIGS[name])), field)


def test_what_a_trainer_writes_into_a_configuration_is_no_reason(tmp_path):
    trained = make_llama(1, use_cache=False, attention_dropout=0.1, pad_token_id=5)
    trained.save_pretrained(tmp_path)
    prior = Prior(make_llama())
    prior.swap(tmp_path)
    assert torch.equal(logprobs(prior, IDS), logprobs(Prior(trained.eval()), IDS))


def test_numbers_that_the_priors_dtype_does_not_hold(tmp_path):
    big = make_llama(1)
    with torch.no_grad():
        big.lm_head.weight[3, 3] = 1e6
    big.save_pretrained(tmp_path)
    assert_refused(
        Prior(make_llama().half()), tmp_path, r"is not finite as torch\.float16.*bfloat16"
    )
    Prior(make_llama()).swap(tmp_path)


def test_live_weights_of_two_adapters_at_once():
    trainee = tuned()
    trainee.add_adapter("second", lora())
    trainee.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"adapters \['default', 'second'\] on at once"):
        LiveWeights(trainee)


def test_deleted_in_the_middle(tmp_path):
    """Its files stay open."""
    prior, new = Prior(make_llama()), make_llama(1)
    new.save_pretrained(tmp_path / "new", max_shard_size="20KB")
    prepared = prior.prepare_swap(tmp_path / "new")
    shutil.rmtree(tmp_path / "new")
    prior.complete_swap(prepared)
    assert torch.equal(logprobs(prior, IDS), logprobs(Prior(new), IDS))


@pytest.fixture
def failing_disk(monkeypatch):
    """Copies three tensors, and then no more."""
    from toedit_collate.prior import weights

    copied = []

    def fails(target, whole):
        if len(copied) == 3:
            raise OSError("input/output error")
        copied.append(target.copy_(whole))

    with monkeypatch.context() as patched:
        patched.setattr(weights, "copy_into", fails)
        yield patched


def test_a_disk_that_fails_leaves_no_mixture(tmp_path, failing_disk):
    prior, new = Prior(make_llama()), make_llama(1)
    new.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"failed while.*input/output error.*load it again"):
        prior.swap(tmp_path)
    with pytest.raises(ValueError, match=r"the prior may have weights of both"):
        logprobs(prior, IDS)
    failing_disk.undo()
    prior.swap(tmp_path)
    assert torch.equal(logprobs(prior, IDS), logprobs(Prior(new), IDS))


@pytest.mark.parametrize("shared", [False, True])
def test_a_disk_that_fails_at_a_new_adapter_leaves_the_old_prior(tmp_path, failing_disk, shared):
    prior = Prior.shared(get_peft_model(make_llama(), lora())) if shared else Prior(make_llama())
    before, names = logprobs(prior, IDS), [name for name, _ in prior.model.named_parameters()]
    other = tuned()
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"input/output error.*the old prior is kept"):
        prior.swap(tmp_path)
    assert torch.equal(logprobs(prior, IDS), before)
    assert prior.generation == 0
    assert [name for name, _ in prior.model.named_parameters()] == names
    failing_disk.undo()
    prior.swap(tmp_path)
    assert torch.allclose(logprobs(prior, IDS), logprobs(Prior(other), IDS), atol=1e-5)


STATE = make_llama(1).state_dict()
NO_STATES = {
    "a number": (123, TypeError, r"not '?int"),
    "a model": (make_llama(), TypeError, r"not '?LlamaForCausalLM"),
    "a file": (__file__, FileNotFoundError, r"checkpoint folder .*py does not exist"),
    "names": ({1: torch.zeros(2)}, TypeError, r"tensors by name, got Tensor for 1"),
    "numbers": ({"a": 1}, TypeError, r"tensors by name, got int for 'a'"),
    "whole numbers": ({n: t.long() for n, t in STATE.items()}, ValueError, r"int64, and the prior"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_STATES)
def test_what_is_no_checkpoint(name):
    source, error, message = NO_STATES[name]
    prior = Prior(make_llama())
    before = logprobs(prior, IDS)
    with pytest.raises(error, match=message):
        prior.swap(source)
    assert torch.equal(logprobs(prior, IDS), before)


def test_parameters_are_taken_as_values(recwarn):
    prior, new = Prior(make_llama()), make_llama(1)
    prior.swap(dict(new.named_parameters()))
    assert torch.equal(logprobs(prior, IDS), logprobs(Prior(new), IDS))
    assert not recwarn.list
