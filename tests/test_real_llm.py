"""A real pretrained model: the same edits as the slow reference, and a real run of SFTTrainer.

Set `TOEDIT_REAL_LLM` to the folder of a causal language model with its tokenizer and chat template,
such as SmolLM2-135M-Instruct.
"""

import copy
import os
import pathlib

import pytest
import torch
from sameness import assert_same_edit

from toedit_collate import EditPolicy, Prior, attach, edit_tokens

TEXT = (
    "The sun rises in the east. Two plus two is four. The capital of France is Paris; the capital "
    "of Italy is Rome."
)
QUESTION = "Tom has 3 apples and buys 4 more. How many apples does he have?"
ANSWER = "Tom has 3 + 4 = 7 apples.\n#### 7"

folder = os.environ.get("TOEDIT_REAL_LLM", "")
pytestmark = pytest.mark.skipif(
    not folder or not pathlib.Path(folder).is_dir(), reason="TOEDIT_REAL_LLM names no folder"
)


@pytest.fixture(scope="module")
def real():
    return Prior.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def ids(real):
    return real.tokenizer(TEXT, return_tensors="pt").input_ids


@pytest.mark.parametrize(
    "policy",
    [
        EditPolicy.paper(threshold=0.5),
        EditPolicy.reference_code(top_k=64, threshold=0.9),
        EditPolicy.reference_code("low_drop_up_revise", drop_below=0.01),
        EditPolicy(region="all", top_k=8, target="labels"),
        EditPolicy(region="below", threshold=0.1, sampler="top_p"),
    ],
    ids=["paper", "reference_code", "low_drop_up_revise", "labels", "below"],
)
def test_edits_are_those_of_the_reference(real, ids, policy):
    result = assert_same_edit(real, policy, ids, labels=ids)
    assert (result.selected | result.dropped).any()


def test_draws_have_the_priors_distribution(real, ids):
    """Mean log-probability of 64 draws per token, against the entropy that it estimates."""
    result = edit_tokens(real, ids, labels=ids, policy=EditPolicy.distill())
    with torch.no_grad():
        logits = real.model(input_ids=ids).logits[0, :-1].double()
    logits[:, sorted(real.special_ids)] = -torch.inf  # are never drawn
    logprob = logits.log_softmax(-1)
    p = logprob.exp()
    drawn, counts = result.draws[0, 1:].long().unbind(-1)
    assert (counts.sum(-1) == 64).all()
    seen = logprob.gather(-1, drawn.clamp(min=0)).masked_fill(counts == 0, 0)
    found = (seen * counts).sum(-1) / 64
    finite = logprob.masked_fill(p == 0, 0)
    mean = (p * finite).sum(-1)
    variance = (p * finite**2).sum(-1) - mean**2
    error = float((variance / 64).sum().sqrt())
    assert abs(float((found - mean).sum())) < 4 * error


def test_bf16_decides_as_float32_but_at_the_threshold(real, ids):
    """A 16-bit prior flips only tokens that lie close to the threshold."""
    low_prior = Prior.from_pretrained(folder, dtype=torch.bfloat16)
    policy = EditPolicy(threshold=0.9, scope="all")
    low = edit_tokens(low_prior, ids, policy=policy, return_logprob=True)
    high = edit_tokens(real, ids, policy=policy, return_logprob=True)
    assert high.selected.any()
    flipped = low.selected != high.selected
    assert ((high.logprob.exp() - 0.9).abs()[flipped] < 0.05).all()
    assert flipped.float().mean() < 0.05


def test_a_lora_run_with_a_shared_prior(tmp_path):
    """Only answers are edited, the template's tokens never, and the base keeps its weights."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    rows = [
        {
            "prompt": [{"role": "user", "content": QUESTION}],
            "completion": [{"role": "assistant", "content": ANSWER}],
        }
    ] * 4
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            str(tmp_path), max_steps=2, per_device_train_batch_size=2, max_length=128,
            report_to=[], save_strategy="no", use_cpu=True, bf16=False, logging_steps=1,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )  # fmt: skip
    policy = EditPolicy(region="all", exclude_original=True, top_k=8)
    collator = attach(trainer, Prior.shared(trainer.model), policy)
    batch = next(iter(trainer.get_train_dataloader()))
    plain = trainer.processing_class.apply_chat_template(
        rows[0]["prompt"] + rows[0]["completion"], return_dict=False, return_tensors="pt"
    )[0]
    changed = batch["input_ids"][0, : len(plain)] != plain
    assert changed.sum() > 5
    assert not changed[batch["labels"][0, : len(plain)] == -100].any()
    special = torch.isin(plain, torch.tensor(trainer.processing_class.all_special_ids))
    assert not changed[special].any()
    trainer.train()
    assert collator.stats["changed"] > 0
    base = trainer.model.get_base_model().state_dict()
    for name, value in base.items():
        if "lora_" not in name:
            assert torch.equal(value, before[name.replace(".base_layer", "")]), name
    assert all("nan" not in str(one.get("loss", "")) for one in trainer.state.log_history)
