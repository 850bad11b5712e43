"""What differs on a GPU: devices, dtypes, pinned memory, events. Run with `pytest -m gpu`."""

import pytest
import reference
import torch
from conftest import likely_ids, make_llama, make_tokenizer
from planned_step import RealStep
from running import CONFIGS
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from toedit_collate import EditPolicy, Journal, Prior, ToEditCollator, edit_tokens
from toedit_collate.commands.plan import CARDS, Sharding, make_plan, read_run
from toedit_collate.head import kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
POLICY = EditPolicy(threshold=0.5, temperature=1.3, sampler="full")


@pytest.fixture(scope="module")
def ids():
    return likely_ids(make_llama(), 6, 40)


@pytest.fixture(scope="module")
def few_ids(ids):
    """For the slow reference."""
    return ids[:2, :24]


@pytest.mark.parametrize("policy", [POLICY, EditPolicy(region="below", threshold=0.1, top_k=5)])
def test_the_edit_is_the_references(few_ids, policy):
    model = make_llama()
    expected, selected, changed, _ = reference.edit(model, few_ids, policy)
    result = edit_tokens(Prior(make_llama().cuda()), few_ids.cuda(), policy=policy)
    assert result.input_ids.is_cuda
    assert torch.equal(result.selected.cpu(), selected)
    assert torch.equal(result.input_ids.cpu(), expected)
    assert changed.any()


def test_tensors_come_back_to_the_device_they_came_from(few_ids):
    result = edit_tokens(Prior(make_llama().cuda()), few_ids, policy=POLICY)
    assert not result.input_ids.is_cuda
    assert torch.equal(result.input_ids, reference.edit(make_llama(), few_ids, POLICY)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_16_bit_priors_agree_but_at_the_threshold(ids, dtype, implementation):
    model = make_llama(attn_implementation=implementation).to("cuda", dtype)
    result = edit_tokens(Prior(model), ids.cuda(), policy=POLICY, return_logprob=True)
    expected = reference.logprob(make_llama(), ids)[:, 1:]
    got = result.logprob.cpu().double()[:, 1:]
    assert (got - expected).abs().median() < 0.05
    clear = (expected.exp() - 0.5).abs() > 0.2
    selected = result.selected.cpu()[:, 1:]
    assert (selected == (expected.exp() >= 0.5))[clear].float().mean() > 0.98


@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches_from_workers(ids, workers):
    prior = Prior(make_llama().cuda(), make_tokenizer())
    collator = ToEditCollator(prior, POLICY)
    rows = [{"input_ids": row.tolist()} for row in ids]
    loader = DataLoader(
        rows, batch_size=3, collate_fn=collator, num_workers=workers, pin_memory=True,
        multiprocessing_context="forkserver" if workers else None,
    )  # fmt: skip
    batches = [batch.to("cuda", non_blocking=True) for batch in loader]
    new_ids = torch.cat([batch["input_ids"] for batch in batches])
    assert torch.equal(new_ids, edit_tokens(prior, ids.cuda(), policy=POLICY).input_ids)
    stats = collator.stats
    assert stats["batches"] == 2
    assert stats["changed"] == int((new_ids.cpu() != ids).sum())
    assert stats["seconds"] > 0


def test_a_prior_has_the_same_fingerprint_as_on_the_cpu():
    assert Prior(make_llama().cuda()).fingerprint == Prior(make_llama()).fingerprint


def test_a_swap_is_in_place(tmp_path, ids):
    prior = Prior(make_llama().cuda())
    storage = [p.data_ptr() for p in prior.model.parameters()]
    make_llama(1).save_pretrained(tmp_path)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    prior.swap(tmp_path)
    largest = max(p.nbytes for p in prior.model.parameters())
    assert torch.cuda.max_memory_allocated() - before <= 2 * largest + 2**20
    assert [p.data_ptr() for p in prior.model.parameters()] == storage
    assert edit_tokens(prior, ids, policy=POLICY).input_ids.equal(
        reference.edit(make_llama(1), ids, POLICY)[0]
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_journal_keeps_what_a_gpu_edits(tmp_path, few_ids, device):
    prior = Prior(make_llama().cuda())
    collator = ToEditCollator(prior, POLICY, base_collator=dict, journal=Journal(tmp_path))
    expected = reference.edit(make_llama(), few_ids, POLICY)[0]
    for _ in range(2):
        edited = collator({"input_ids": few_ids.to(device)})["input_ids"]
        assert edited.device.type == device
        assert torch.equal(edited.cpu(), expected)
    assert collator.stats["replayed"] == few_ids.numel()
    assert [collator.journal.replay(row, 1) for row in few_ids.tolist()] == expected.tolist()


@pytest.mark.parametrize(
    "policy", [EditPolicy.reference_code(), POLICY], ids=["paper-like", "half"]
)
def test_the_host_waits_for_nothing_but_what_it_fetches(ids, policy):
    """CUDA itself says where an operation would make the host wait; `fetch` waits by itself."""
    prior = Prior(make_llama().cuda())
    far = ids.cuda()
    edit_tokens(prior, far, policy=policy, num_sampled=8)  # measures the likely competitors
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = edit_tokens(prior, far, policy=policy, num_sampled=8)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(result.input_ids, edit_tokens(prior, far, policy=policy).input_ids)


def test_a_collated_batch_goes_to_the_gpu_without_a_further_wait(ids):
    collator = ToEditCollator(Prior(make_llama().cuda(), make_tokenizer()), POLICY)
    rows = [{"input_ids": row.tolist()} for row in ids]
    collator(rows).to("cuda")
    batch = collator(rows)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch.to("cuda", non_blocking=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert batch["input_ids"].is_cuda
    assert collator.stats["batches"] == 2


def peak_bytes(function):
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("with_kernel", [False, True])
def test_the_head_of_a_large_model_takes_little_memory(with_kernel):
    """Llama-3-8B's head, 8 x 1024 tokens: at most 256 MiB beyond what the trunk takes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=1,
        num_attention_heads=32, num_key_value_heads=8,
    )  # fmt: skip
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    prior = Prior(model)
    if with_kernel:
        if not kernels.is_available(prior.device):
            pytest.skip("triton does not run here")
        prior.use_kernel()
    tokens = torch.randint(0, 128_256, (8, 1024), device="cuda")
    edit_tokens(prior, tokens)
    with torch.no_grad():
        trunk = peak_bytes(lambda: model.model(input_ids=tokens, use_cache=False))
    assert peak_bytes(lambda: edit_tokens(prior, tokens, num_sampled=64)) <= trunk + 256 * 2**20


def test_the_kernel_decides_as_the_tiles_do(ids):
    tiled, fused = Prior(make_llama().cuda()), Prior(make_llama().cuda())
    if not kernels.is_available(fused.device):
        pytest.skip("triton does not run here")
    fused.use_kernel()
    first, second = (edit_tokens(p, ids.cuda(), policy=POLICY) for p in (tiled, fused))
    assert torch.equal(first.input_ids, second.input_ids)
    assert torch.equal(first.selected, second.selected)


def test_compiled(ids):
    prior, compiled = Prior(make_llama().cuda()), Prior(make_llama().cuda())
    compiled.compile()
    expected = edit_tokens(prior, ids.cuda(), policy=POLICY, return_logprob=True)
    got = edit_tokens(compiled, ids.cuda(), policy=POLICY, return_logprob=True)
    assert torch.allclose(got.logprob[:, 1:], expected.logprob[:, 1:], atol=1e-3)


def test_fp8(tmp_path, ids):
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs compute capability 8.9")
    make_llama().to(torch.bfloat16).save_pretrained(tmp_path)
    prior = Prior.from_pretrained(tmp_path, quantization="fp8", device="cuda")
    expected = edit_tokens(Prior(make_llama().cuda()), ids.cuda(), policy=POLICY)
    agreed = edit_tokens(prior, ids.cuda(), policy=POLICY).selected == expected.selected
    assert agreed.float().mean() > 0.9


def test_packed_rows_that_shrink_reach_the_gpu(ids):
    """What else is in the batch still is on the CPU when the rows shrink."""
    policy = POLICY.replace(drop_below=1e-3)
    collator = ToEditCollator(Prior(make_llama().cuda()), policy, base_collator=dict)
    batch = {
        "input_ids": ids.view(1, -1),
        "labels": ids.view(1, -1),
        "position_ids": (torch.arange(ids.numel()) % ids.shape[1]).unsqueeze(0),
        "completion_mask": torch.ones(1, ids.numel(), dtype=torch.long),
    }
    moved = collator(batch).to("cuda")
    near = collator(batch)
    assert collator.stats["dropped"] > 0
    for key, value in moved.items():
        assert value.is_cuda
        assert torch.equal(value.cpu(), near[key].cpu()), key


@pytest.mark.parametrize("small_prior", [False, True])
def test_a_lora_step_takes_the_memory_that_was_planned(small_prior):
    """Llama-3-8B at its real size, random weights: within a quarter."""
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("takes 40 GiB")
    config = CONFIGS / f"sft_lora_llama3_8b{'_small_prior' * small_prior}.yaml"
    full_rows = "--packing true --packing_strategy wrapped --per_device_train_batch_size 2"
    run = read_run(config, full_rows.split())
    plan = make_plan(run, CARDS["a100-80gb"], Sharding(), 0.4)
    assert RealStep(run, "cuda").peak() == pytest.approx(plan.peak, rel=0.25)
