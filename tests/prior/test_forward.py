"""Passes of the trunk: packed rows, compiled, quantised."""

import pytest
import torch
from conftest import VOCAB_SIZE, likely_ids, make_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from trainees import compiles, logprobs
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from toedit_collate import EditPolicy, Prior, edit_tokens
from toedit_collate.prior.forward import can_pack, leaks_in_packed_rows

POLICY = EditPolicy(threshold=0.5, sampler="full", temperature=1.3, protect_special=False)
CPU = torch.device("cpu")


def packing(prior):
    """The prior as if its attention took the borders of documents.

    FlashAttention needs a GPU (see test_gpu.py); these implementations make a mask of the same
    `position_ids`.
    """
    prior._passes.can_pack = True
    return prior


_IDS = likely_ids(make_llama(), 1, 60)[0]
_PADDED = Prior(make_llama())
_PACKING = packing(Prior(make_llama()))


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_packed_documents_are_edited_as_padded_ones(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    starts = [int(torch.randint(0, 40, (1,), generator=generator)) for _ in lengths]
    rows = torch.full((len(lengths), max(lengths)), 2)
    mask = torch.zeros_like(rows)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        rows[row, :length], mask[row, :length] = _IDS[start : start + length], 1
    labels = torch.where(mask == 1, rows, -100)
    labels[seed % len(lengths)] = -100  # a document that needs no pass
    arguments = {"attention_mask": mask, "labels": labels, "policy": POLICY}
    padded, packed = (edit_tokens(p, rows, **arguments) for p in (_PADDED, _PACKING))
    assert torch.equal(packed.input_ids, padded.input_ids)
    assert torch.equal(packed.selected, padded.selected)


def test_a_packed_row_has_no_padding(monkeypatch):
    prior = packing(Prior(make_llama()))
    seen = []
    forward = prior.model.model.forward

    def recorded(*args, **kwargs):
        seen.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(prior.model.model, "forward", recorded)
    mask = torch.ones(3, 20, dtype=torch.long)
    mask[1, 5:] = mask[2, 11:] = 0
    edit_tokens(prior, _IDS.view(3, 20), attention_mask=mask, policy=POLICY)
    assert seen == [(1, 20 + 5 + 11)]


def test_only_attention_that_takes_borders_packs():
    model = make_llama()
    assert not can_pack(model, CPU)
    assert not leaks_in_packed_rows(model, CPU)


def test_a_model_that_leaks_is_not_packed(caplog):
    """A state-space model carries its state over the border."""
    config = AutoConfig.for_model(
        "mamba", vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, state_size=4
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.config._attn_implementation = "flash_attention_2"
    with torch.no_grad():
        assert leaks_in_packed_rows(model, CPU)
        assert not can_pack(model, CPU)
    assert "packed documents would see each other in the prior" in caplog.text


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

    def test_an_empty_output_is_told(self):
        """Of torch 2.6, whose compiler loses the fields of outputs of transformers 5."""
        prior = Prior(make_llama())
        prior.model.model.forward = lambda **_: BaseModelOutputWithPast()
        with pytest.raises(
            RuntimeError, match=r"returns nothing.*torch 2\.6.*do not call prior\.compile"
        ):
            edit_tokens(prior, _IDS.view(4, 15))

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

    def test_fp8_names_the_gpu_that_it_needs(self, tmp_path):
        pytest.importorskip("torchao")
        if torch.cuda.is_available():
            pytest.skip("for machines without a GPU")
        make_llama().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"'fp8' needs a GPU of compute capability 8.9"):
            Prior.from_pretrained(tmp_path, quantization="fp8")

    def test_what_is_missing_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
        with pytest.raises(ImportError, match=r"'int8' needs torchao; pip install torchao"):
            Prior.from_pretrained(tmp_path, quantization="int8")
