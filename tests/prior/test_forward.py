"""Passes of the trunk: compiled, quantised."""

import pytest
import torch
from conftest import likely_ids, make_llama
from trainees import compiles, logprobs

from toedit_collate import EditPolicy, Prior, edit_tokens

POLICY = EditPolicy(threshold=0.5, sampler="full", temperature=1.3, protect_special=False)
_IDS = likely_ids(make_llama(), 1, 60)[0]


class TestCompile:
    @compiles
    def test_the_edit_is_the_same_and_shapes_do_not_recompile(self):
        compiled, plain = Prior(make_llama()), Prior(make_llama())
        graphs = []

        def backend(module, example_inputs):
            graphs.append(module)
            return module.forward

        torch._dynamo.reset()
        compiled.compile(backend=backend)
        for B, T in ((2, 30), (4, 15), (3, 20), (6, 10), (5, 12)):
            ids = _IDS[: B * T].view(B, T)
            got, expected = (edit_tokens(p, ids, policy=POLICY) for p in (compiled, plain))
            assert torch.equal(got.input_ids, expected.input_ids)
            assert len(graphs) == 1
        edit_tokens(compiled, _IDS.view(1, 60))
        edit_tokens(compiled, _IDS[:50].view(1, 50))
        assert len(graphs) == 2

    @compiles
    def test_a_swap_takes_effect(self, tmp_path):
        prior = Prior(make_llama())
        torch._dynamo.reset()
        prior.compile(backend="eager")
        ids = _IDS.view(4, 15)
        before = logprobs(prior, ids)
        make_llama(seed=1).save_pretrained(tmp_path)
        prior.swap(tmp_path)
        assert torch.allclose(logprobs(prior, ids), logprobs(Prior(make_llama(seed=1)), ids))
        assert not torch.allclose(logprobs(prior, ids), before)

    def test_the_trainee_is_not_compiled(self):
        from peft import LoraConfig, get_peft_model

        trainee = get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"]))
        with pytest.raises(ValueError, match=r"shared prior is the model in training.*torch_compi"):
            Prior.shared(trainee).compile()


class TestTorchao:
    def test_int8(self, tmp_path):
        pytest.importorskip("torchao")
        make_llama().save_pretrained(tmp_path)
        prior = Prior.from_pretrained(tmp_path, quantization="int8")
        exact = Prior(make_llama())
        ids = _IDS.view(3, 20)
        assert not torch.equal(logprobs(prior, ids), logprobs(exact, ids))
        difference = (logprobs(prior, ids) - logprobs(exact, ids)).abs()
        assert difference.median() < 0.3  # of logits that are some 20 apart
        assert prior.fingerprint != exact.fingerprint
