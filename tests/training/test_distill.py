"""EditPolicy.distill() in real runs: the labels of a batch become many draws of the prior."""

from __future__ import annotations

import copy

import pytest
import reference
import torch
from conftest import make_llama
from datasets import Dataset
from peft import get_peft_model
from test_sft import DATA, PACKED_RUNS, RUNS
from tokenizer_pairs import make
from torch.utils.data import DataLoader
from trainees import (
    assert_same_weights,
    dataset,
    documents,
    lora,
    make_prior,
    make_trainee,
    make_trainer,
    weights,
)
from transformers import TrainerCallback

from toedit_collate import (
    DecisionCache,
    EditPolicy,
    Journal,
    Prior,
    ToEditCollator,
    edit_tokens,
    soft_cross_entropy,
)

DISTILL = EditPolicy.distill(8)


def padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask, torch.where(mask == 1, ids, -100)


class TestEdit:
    def test_draws_are_those_of_the_reference(self):
        """Each draw is an inversion of its own uniform, with the observed token first."""
        prior, rows = make_prior(), documents(3)
        ids, mask, labels = padded(rows)
        result = edit_tokens(
            prior, ids, attention_mask=mask, labels=labels, policy=DISTILL, epoch=2
        )
        assert torch.equal(result.input_ids, ids)
        assert torch.equal(result.labels, labels)
        for b, row in enumerate(rows):
            with torch.no_grad():
                logits = prior.model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
            for t in range(1, len(row)):
                p = logits[t - 1].double().softmax(-1).tolist()
                drawn = [
                    reference.draw(
                        p, row[t],
                        reference.uniform(row, t, seed=0, epoch=2, generation=0, number=number),
                    )
                    for number in range(8)
                ]  # fmt: skip
                expected = {one: drawn.count(one) for one in drawn}
                found = {i: n for i, n in result.draws[b, t].tolist() if n}
                assert found == expected
                most = min(expected, key=lambda one: (-expected[one], one))
                assert int(result.tokens[b, t]) == most
                assert bool(result.changed[b, t]) == (most != row[t])

    def test_places_without_a_label_have_no_draws(self):
        ids, mask, labels = padded(documents(3))
        labels[0, 2:5] = -100
        draws = edit_tokens(
            make_prior(), ids, attention_mask=mask, labels=labels, policy=DISTILL
        ).draws
        assert draws.dtype == torch.int32
        assert not draws[labels == -100].any()
        assert (draws[..., 1].sum(-1) == 8 * (labels != -100)).all()
        # The first token of a document is not drawn: it is its own only id.
        assert draws[:, 0].tolist() == [[[int(i), 8], *[[0, 0]] * 7] for i in ids[:, 0]]

    def test_one_draw_is_an_edit(self):
        ids, mask, labels = padded(documents(3))
        prior = make_prior()
        one = edit_tokens(
            prior, ids, attention_mask=mask, labels=labels, policy=EditPolicy.distill(1)
        )
        same = EditPolicy(region="all", target="labels", sampler="rejection")
        edit = edit_tokens(prior, ids, attention_mask=mask, labels=labels, policy=same)
        assert one.draws is None
        assert torch.equal(one.labels, edit.labels)

    def test_only_selected_tokens_are_drawn(self):
        ids, mask, labels = padded(documents(4))
        policy = DISTILL.replace(region="above", threshold=0.3)
        result = edit_tokens(make_prior(), ids, attention_mask=mask, labels=labels, policy=policy)
        kept = (labels != -100) & ~result.selected
        assert 0 < int(result.selected.sum()) < int((labels != -100).sum())
        assert torch.equal(result.draws[kept][:, 0, 0].long(), labels[kept])
        assert (result.draws[kept][:, 0, 1] == 8).all()

    def test_the_same_draws_in_any_layout(self):
        rows = documents(3)
        ids, mask, labels = padded(rows)
        prior = make_prior()
        apart = edit_tokens(prior, ids, attention_mask=mask, labels=labels, policy=DISTILL).draws
        packed = torch.tensor([[token for row in rows for token in row]])
        positions = torch.tensor([[t for row in rows for t in range(len(row))]])
        joined = edit_tokens(
            prior, packed, position_ids=positions, labels=packed, policy=DISTILL
        ).draws
        assert torch.equal(joined[0], apart[mask == 1])


class TestCache:
    ONCE = EditPolicy.distill(8, redraw="never")

    def test_draws_are_those_without_a_cache(self, tmp_path):
        ids, mask, labels = padded(documents(3))
        batch = {"attention_mask": mask, "labels": labels, "policy": self.ONCE}
        prior = make_prior()
        plain = edit_tokens(prior, ids, **batch)
        cache = DecisionCache(tmp_path / "cache")
        for epoch in (0, 1):
            cached = edit_tokens(prior, ids, cache=cache, epoch=epoch, **batch)
            assert torch.equal(cached.draws, plain.draws)
            for name in ("selected", "changed", "scored", "tokens", "labels"):
                assert torch.equal(getattr(cached, name), getattr(plain, name)), name
        cache.flush()
        alone = DecisionCache(tmp_path / "cache").prior(self.ONCE)
        again = edit_tokens(alone, ids, cache=DecisionCache(tmp_path / "cache"), **batch)
        assert torch.equal(again.draws, plain.draws)

    def test_another_seed_is_another_cache(self, tmp_path):
        ids, mask, labels = padded(documents(3))
        prior, cache = make_prior(), DecisionCache(tmp_path / "cache")
        found = [
            edit_tokens(
                prior, ids, attention_mask=mask, labels=labels, cache=cache,
                policy=self.ONCE.replace(seed=seed),
            ).draws
            for seed in (0, 1)
        ]  # fmt: skip
        assert not torch.equal(*found)

    def test_only_selected_tokens_are_kept(self, tmp_path):
        ids, mask, labels = padded(documents(4))
        policy = self.ONCE.replace(region="above", threshold=0.3)
        batch = {"attention_mask": mask, "labels": labels, "policy": policy}
        prior = make_prior()
        plain, cache = edit_tokens(prior, ids, **batch), DecisionCache(tmp_path / "cache")
        for _ in range(2):
            assert torch.equal(edit_tokens(prior, ids, cache=cache, **batch).draws, plain.draws)

    def test_fresh_draws_are_refused(self, tmp_path):
        ids, mask, labels = padded(documents(2))
        with pytest.raises(ValueError, match=r"8 draws.*redraw='epoch'.*use redraw='never'"):
            edit_tokens(
                make_prior(), ids, attention_mask=mask, labels=labels, policy=DISTILL,
                cache=DecisionCache(tmp_path / "cache"),
            )  # fmt: skip


@pytest.mark.parametrize("kind", ["Trainer", "SFTTrainer"])
@pytest.mark.parametrize("way", ["attach", "callback", "both"])
def test_training_learns_the_draws(tmp_path, tokenizer, kind, way):
    """The first loss is the cross-entropy of the draws that `edit_tokens` gives for the batch."""
    rows = documents(2)
    model, prior = make_trainee(), make_prior(tokenizer)
    ids, mask, labels = padded(rows)
    draws = edit_tokens(prior, ids, attention_mask=mask, labels=labels, policy=DISTILL).draws
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    expected = soft_cross_entropy(logits, draws, labels)
    trainer, collator = make_trainer(
        tmp_path, tokenizer, kind=kind, way=way, policy=DISTILL, model=model, prior=prior,
        train=dataset(rows), max_steps=1,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(expected), abs=2e-5)
    assert collator.stats["selected"] == collator.stats["scored"] == sum(map(len, rows)) - 2


@pytest.mark.parametrize("way", ["attach", "callback"])
def test_layers_compute_in_mixed_precision(tmp_path, tokenizer, way):
    """Also where the Trainer has prepared its model before the loss is installed."""
    trainer, _ = make_trainer(tmp_path, tokenizer, way=way, policy=DISTILL, bf16=True, max_steps=1)
    seen = set()
    layer = trainer.model.model.layers[0].self_attn.q_proj
    layer.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    trainer.train()
    assert seen == {torch.bfloat16}


class Disturb(TrainerCallback):
    """Evaluates, saves and unwraps the model after each step, as a Trainer or a user may do."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        trainer = self.trainer
        trainer.evaluate()
        trainer.save_model()
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)


@pytest.mark.parametrize("kind", ["Trainer", "SFTTrainer"])
@pytest.mark.parametrize("way", ["attach", "callback"])
def test_the_loss_stays_installed(tmp_path, tokenizer, kind, way):
    """In mixed precision, whatever happens to the model between two steps."""
    trained = []
    for disturbances in ([], [Disturb()]):
        trainer, _ = make_trainer(
            tmp_path, tokenizer, kind=kind, way=way, policy=DISTILL, bf16=True, max_steps=2,
            callbacks=disturbances, learning_rate=0.05,
        )  # fmt: skip
        trainer.eval_dataset = dataset(documents(2, seed=9))
        for one in disturbances:
            one.trainer = trainer
        trainer.train()
        trained.append(weights(trainer.model))
    assert_same_weights(*trained)


def test_a_forward_that_is_replaced_is_noticed(tmp_path, tokenizer):
    class Replace(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            model.forward = type(model).forward.__get__(model)

    trainer, _ = make_trainer(
        tmp_path, tokenizer, way="attach", policy=DISTILL, callbacks=[Replace()], max_steps=2
    )
    with pytest.raises(ValueError, match="let nothing replace the model's `forward`"):
        trainer.train()


def test_a_forward_that_is_replaced_before_training_is_used(tmp_path, tokenizer):
    """As `use_liger_kernel=True` does in `train()`: the loss is installed once more."""
    trainer, _ = make_trainer(tmp_path, tokenizer, way="attach", policy=DISTILL, max_steps=1)
    trainer.model.forward = type(trainer.model).forward.__get__(trainer.model)
    trainer.train()
    usual, _ = make_trainer(tmp_path, tokenizer, way="attach", policy=DISTILL, max_steps=1)
    usual.train()
    assert trainer.state.log_history[0]["loss"] == usual.state.log_history[0]["loss"]


@pytest.mark.parametrize("way", ["attach", "callback"])
def test_liger(tmp_path, tokenizer, way):
    """Its loss of hard labels, which replaces `forward` when training begins, gives way."""
    pytest.importorskip("liger_kernel", reason="needs the package liger-kernel")
    # Without its other kernels, which need a GPU.
    only = dict.fromkeys(["rope", "rms_norm", "swiglu", "cross_entropy"], False)
    trained = []
    for liger in (False, True):
        trainer, _ = make_trainer(
            tmp_path, tokenizer, way=way, policy=DISTILL, max_steps=2, use_liger_kernel=liger,
            liger_kernel_config={**only, "fused_linear_cross_entropy": True},
        )  # fmt: skip
        trainer.train()
        trained.append(weights(trainer.model))
    assert_same_weights(*trained)


@pytest.mark.parametrize(
    "name",
    ["prompt-completion", "assistant only", "bfd, assistant only", "wrapped", "padding-free"],
)
def test_layouts_of_an_sft_trainer(tmp_path, tokenizer, name):
    """The first loss is that of the draws in the batch, document by document, without prompts."""
    data, settings, has_prompts = {**RUNS, **PACKED_RUNS}[name]
    model, seen = make_trainee(), []
    trainer, collator = make_trainer(
        tmp_path, tokenizer, kind="SFTTrainer", way="attach", policy=DISTILL, max_steps=1,
        model=copy.deepcopy(model), train=Dataset.from_list(DATA[data]), **settings,
    )  # fmt: skip
    collator.editor.on_edit = lambda batch, result: seen.append((batch, result))
    trainer.train()
    (batch, result), *_ = seen
    assert bool((result.labels[:, 1:] == -100).any()) >= has_prompts
    assert (result.draws[..., 1].sum(-1) == 8 * (result.labels != -100)).all()
    inputs = {key: batch[key] for key in ("attention_mask", "position_ids") if key in batch}
    with torch.no_grad():
        logits = model(input_ids=result.input_ids, use_cache=False, **inputs).logits
    expected = soft_cross_entropy(logits, result.draws, result.labels)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(expected), abs=2e-5)


def test_a_loop_of_ones_own_learns_what_a_trainer_learns(tmp_path, tokenizer):
    rows, settings = documents(6), {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0}
    trainer, _ = make_trainer(
        tmp_path, tokenizer, way="attach", policy=DISTILL, train=dataset(rows),
        lr_scheduler_type="constant", **settings,
    )  # fmt: skip
    model = copy.deepcopy(trainer.model)
    model.forward = type(model).forward.__get__(model)  # as nothing had been installed
    order = []
    trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: order.extend(kwargs["input_ids"][:, 0].tolist()), with_kwargs=True
    )
    trainer.train()
    by_number = {row[0]: {"input_ids": row} for row in rows}
    collator = ToEditCollator(make_prior(tokenizer), DISTILL, tokenizer=tokenizer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for batch in DataLoader([by_number[n] for n in order], 2, collate_fn=collator):
        batch = dict(batch)
        draws, labels = batch.pop("draws"), batch.pop("labels")
        soft_cross_entropy(model(**batch).logits, draws, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in weights(trainer.model).items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("packing", [False, True])
def test_completions_with_lora(tmp_path, tokenizer, packing):
    """Prompts have no loss and no draws, packed or not; adapters alone are trained."""
    text = "the quick brown fox jumps over the lazy dog"
    train = Dataset.from_list(
        [{"prompt": text[: 9 + n], "completion": " " + text[n:]} for n in range(6)]
    )
    model = get_peft_model(make_trainee(), lora())
    seen = []
    trainer, collator = make_trainer(
        tmp_path, tokenizer, kind="SFTTrainer", way="attach", policy=DISTILL, model=model,
        train=train, packing=packing, max_length=64, gradient_accumulation_steps=2, max_steps=2,
        learning_rate=0.05,
    )  # fmt: skip
    collator.editor.on_edit = lambda batch, result: seen.append(result)
    before = {n: p.clone() for n, p in model.named_parameters()}
    trainer.train()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert seen
    for result in seen:
        assert (result.draws[..., 1].sum(-1) == 8 * (result.labels != -100)).all()
        assert (result.labels == -100).any()


@pytest.mark.parametrize("kind", ["Trainer", "SFTTrainer"])
def test_a_collator_alone_is_refused(tmp_path, tokenizer, kind):
    trainer, _ = make_trainer(tmp_path, tokenizer, kind=kind, way="collator", policy=DISTILL)
    with pytest.raises(ValueError, match=r"num_draws > 1.*attach\(trainer, prior, policy\)"):
        trainer.train()


@pytest.mark.parametrize("way", ["attach", "callback"])
def test_options_of_the_loss_are_refused(tmp_path, tokenizer, way):
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0\.1"):
        make_trainer(tmp_path, tokenizer, way=way, policy=DISTILL, label_smoothing_factor=0.1)[
            0
        ].train()


def test_a_journal_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"num_draws=8 can't be combined with a journal"):
        ToEditCollator(make_prior(), DISTILL, journal=Journal(tmp_path / "journal"))


def test_a_prior_with_another_tokenizer_is_refused():
    own, other = make("coarse"), make("byte-level")
    prior = Prior(make_llama(3, vocab_size=len(own) + 3), own).aligned_to(other)
    ids = torch.tensor([other("the quick brown fox")["input_ids"]])
    with pytest.raises(ValueError, match="num_draws=8 needs a prior with the trainee's own"):
        edit_tokens(prior, ids, labels=ids, policy=DISTILL)


def test_evaluation_is_untouched(tmp_path, tokenizer):
    trainer, collator = make_trainer(tmp_path, tokenizer, way="attach", policy=DISTILL, max_steps=1)
    trainer.eval_dataset = dataset(documents(4, seed=9))
    plain, _ = make_trainer(tmp_path, tokenizer)
    plain.model.load_state_dict(trainer.model.state_dict())
    plain.eval_dataset = trainer.eval_dataset
    assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    assert collator.stats["batches"] == 0
