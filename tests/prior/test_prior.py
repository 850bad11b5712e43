import pickle

import pytest
import torch
from conftest import likely_ids, make_llama
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from trainees import logprobs, move_adapters
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from toedit_collate import Prior, edit_tokens

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def ids():
    return likely_ids(make_llama(), 2, 20)


class TestFromPretrained:
    def test_a_saved_model_and_its_tokenizer(self, tmp_path, tokenizer, ids):
        make_llama().to(torch.bfloat16).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        prior = Prior.from_pretrained(tmp_path)
        assert next(prior.model.parameters()).dtype == torch.bfloat16
        assert prior.tokenizer.get_vocab() == tokenizer.get_vocab()
        assert not prior.model.training
        assert not any(p.requires_grad for p in prior.model.parameters())
        exact = Prior.from_pretrained(str(tmp_path), dtype=torch.float32, device="cpu")
        assert next(exact.model.parameters()).dtype == torch.float32
        assert edit_tokens(prior, ids).scored.any()

    def test_without_a_tokenizer_it_says_so(self, tmp_path, caplog):
        make_llama().save_pretrained(tmp_path)
        with caplog.at_level("WARNING", logger="toedit_collate"):
            assert Prior.from_pretrained(tmp_path).tokenizer is None
        assert "no tokenizer found" in caplog.text

    def test_an_adapter_on_it(self, tmp_path, ids):
        make_llama().save_pretrained(tmp_path / "base")
        tuned = move_adapters(get_peft_model(make_llama(), LORA), 1)
        tuned.save_pretrained(tmp_path / "adapter")
        prior = Prior.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter")
        assert torch.allclose(logprobs(prior, ids), logprobs(Prior(tuned), ids), atol=1e-5)
        assert not torch.allclose(logprobs(prior, ids), logprobs(Prior(make_llama()), ids))

    def test_refuses_unknown_quantization_and_places(self, tmp_path):
        with pytest.raises(ValueError, match=r"quantization must be.*'8bit'.*got 'int2'"):
            Prior.from_pretrained(tmp_path, quantization="int2")
        with pytest.raises(OSError, match="no-such"):
            Prior.from_pretrained(tmp_path / "no-such-folder")

    def test_quantization_reaches_transformers(self, tmp_path, monkeypatch):
        seen = {}

        def from_pretrained(name, **arguments):
            seen.update(arguments)
            return make_llama()

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
        monkeypatch.setattr("transformers.BitsAndBytesConfig", lambda **kw: kw)
        Prior.from_pretrained(tmp_path, quantization="8bit")
        assert seen["quantization_config"] == {"load_in_8bit": True}
        Prior.from_pretrained(tmp_path, quantization="4bit")
        assert seen["quantization_config"]["load_in_4bit"]


def test_freezes_the_given_model():
    model = make_llama().train()
    model.requires_grad_(True)
    Prior(model)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_is_not_sent_to_workers(prior):
    with pytest.raises(TypeError, match=r"Prior.*can't be pickled.*ToEditCollator"):
        pickle.dumps(prior)


def test_a_compiled_model_is_unwrapped(ids):
    model = make_llama()
    plain = logprobs(Prior(model), ids)
    assert torch.equal(logprobs(Prior(torch.compile(model)), ids), plain)


def test_a_head_without_a_plain_weight_is_refused():
    model = make_llama()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ValueError, match=r"is a Sequential without a plain weight.*lm_head"):
        Prior(model)


def bad_checkpoints():
    """What can be wrong with a folder: name -> (what spoils a good one, message)."""

    def with_tensor(name, change):
        def spoil(folder):
            tensors = load_file(folder / "model.safetensors")
            change(tensors, name)
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})

        return spoil

    def cut(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])

    def no_file(folder):
        (folder / "model.safetensors").unlink()

    def pickled(folder):
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        no_file(folder)

    def lost_shard(folder):
        no_file(folder)
        make_llama(1).save_pretrained(folder, max_shard_size="20KB")
        sorted(folder.glob("model-*.safetensors"))[-1].unlink()

    last = "lm_head.weight"
    return {
        "cut off": (cut, r"not a complete safetensors file"),
        "no file": (no_file, r"no model\.safetensors.*save_pretrained"),
        "pickled only": (pickled, r"only safetensors are read"),
        "lost shard": (lost_shard, r"does not fit the prior: missing .*it must be complete"),
        "NaN": (with_tensor(last, lambda t, n: t[n].view(-1)[5:6].fill_(float("nan"))),
                r"lm_head\.weight.*not finite"),
        "infinite": (with_tensor(last, lambda t, n: t[n].view(-1)[5:6].fill_(float("inf"))),
                     r"lm_head\.weight.*not finite"),
        "other shape": (with_tensor(last, lambda t, n: t.update({n: t[n][:10].clone()})),
                        r"lm_head\.weight.*shape \(10, 32\).*\(320, 32\)"),
        "weight missing": (with_tensor(last, lambda t, n: t.pop(n)), r"missing.*lm_head"),
        "weight too many": (with_tensor(last, lambda t, n: t.update({"extra": t[n].clone()})),
                            r"does not fit.*unexpected.*extra"),
    }  # fmt: skip


BAD = bad_checkpoints()


class TestSwap:
    """In place, all or nothing."""

    def test_takes_over_a_checkpoint_in_place(self, tmp_path, ids):
        prior, new = Prior(make_llama(0)), make_llama(1)
        new.save_pretrained(tmp_path)
        storage = [p.data_ptr() for p in prior.model.parameters()]
        prior.swap(tmp_path)
        assert torch.equal(logprobs(prior, ids), logprobs(Prior(new), ids))
        assert [p.data_ptr() for p in prior.model.parameters()] == storage
        assert prior.generation == 1

    def test_shards_tied_weights_and_other_dtypes(self, tmp_path, ids):
        new = make_llama(1, tie_word_embeddings=True).to(torch.bfloat16)
        new.save_pretrained(tmp_path, max_shard_size="20KB")
        assert (tmp_path / "model.safetensors.index.json").exists()
        prior = Prior(make_llama(0, tie_word_embeddings=True))
        prior.swap(str(tmp_path))
        expected = logprobs(Prior.from_pretrained(tmp_path, dtype=torch.float32), ids)
        assert torch.equal(logprobs(prior, ids), expected)
        assert next(prior.model.parameters()).dtype == torch.float32

    def test_takes_a_state_dict(self, ids):
        prior, new = Prior(make_llama(0)), make_llama(1)
        prior.swap({f"module.{name}": tensor for name, tensor in new.state_dict().items()})
        assert torch.equal(logprobs(prior, ids), logprobs(Prior(new), ids))

    def test_families_that_are_saved_under_other_names(self, tmp_path, ids):
        def mixtral(seed):
            torch.manual_seed(seed)
            return MixtralForCausalLM(MixtralConfig(
                vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=2, num_local_experts=2,
                max_position_embeddings=64,
            )).eval()  # fmt: skip

        mixtral(1).save_pretrained(tmp_path)
        prior = Prior(mixtral(0))
        prior.swap(tmp_path)
        assert torch.equal(logprobs(prior, ids), logprobs(Prior(mixtral(1)), ids))

    def test_takes_adapters_over_the_base_one_after_the_other(self, tmp_path, ids):
        prior = Prior(make_llama())
        for seed in (1, 2):
            tuned = move_adapters(get_peft_model(make_llama(), LORA), seed)
            tuned.save_pretrained(tmp_path / str(seed))
            prior.swap(tmp_path / str(seed))
            assert torch.allclose(logprobs(prior, ids), logprobs(Prior(tuned), ids), atol=1e-5)
        assert prior.generation == 2
        assert not any(p.requires_grad for p in prior.model.parameters())

    def test_a_shared_prior_takes_an_adapter_beside_the_one_in_training(self, tmp_path, ids):
        trainee = move_adapters(get_peft_model(make_llama(), LORA), 1).train()
        grads = {n: p.requires_grad for n, p in trainee.named_parameters()}
        flags = {n: m.training for n, m in trainee.named_modules()}
        prior = Prior.shared(trainee)
        for seed in (2, 3):
            other = move_adapters(get_peft_model(make_llama(), LORA), seed)
            other.save_pretrained(tmp_path / str(seed))
            prior.swap(tmp_path / str(seed))
            assert torch.allclose(logprobs(prior, ids), logprobs(Prior(other), ids), atol=1e-5)
        assert {n: p.requires_grad for n, p in trainee.named_parameters() if n in grads} == grads
        assert {n: m.training for n, m in trainee.named_modules() if n in flags} == flags
        assert trainee.active_adapter == "default"
        assert not any(p.requires_grad for n, p in trainee.named_parameters() if n not in grads)

    @pytest.mark.parametrize("name", BAD)
    def test_a_bad_checkpoint_leaves_the_old_prior(self, tmp_path, ids, name):
        spoil, message = BAD[name]
        prior = Prior(make_llama(0))
        before = logprobs(prior, ids)
        make_llama(1).save_pretrained(tmp_path)
        spoil(tmp_path)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            prior.swap(tmp_path)
        assert torch.equal(logprobs(prior, ids), before)
        assert prior.generation == 0

    def test_no_folder(self, tmp_path, prior):
        with pytest.raises(FileNotFoundError, match=r"no-such does not exist"):
            prior.swap(tmp_path / "no-such")

    def test_another_architecture(self, tmp_path, prior, ids):
        before = logprobs(prior, ids)
        make_llama(hidden_size=64).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="shape"):
            prior.swap(tmp_path)
        assert torch.equal(logprobs(prior, ids), before)

    @pytest.mark.parametrize("shared", [False, True])
    def test_a_bad_adapter(self, tmp_path, ids, shared):
        tuned = move_adapters(get_peft_model(make_llama(), LORA), 1)
        tuned.save_pretrained(tmp_path)
        path = tmp_path / "adapter_model.safetensors"
        tensors = load_file(path)
        next(iter(tensors.values())).view(-1)[0] = float("nan")
        save_file(tensors, path)
        trainee = get_peft_model(make_llama(), LORA)
        prior = Prior.shared(trainee) if shared else Prior(make_llama())
        before = logprobs(prior, ids)
        names = set(dict(trainee.named_parameters()))
        with pytest.raises(ValueError, match="not finite"):
            prior.swap(tmp_path)
        assert torch.equal(logprobs(prior, ids), before)
        assert set(dict(trainee.named_parameters())) == names
        assert not isinstance(prior.model, PeftModel) or shared

    def test_full_weights_into_a_shared_prior_are_refused(self, tmp_path):
        prior = Prior.shared(get_peft_model(make_llama(), LORA))
        make_llama(1).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"full weights.*shares its base"):
            prior.swap(tmp_path)
