"""The loss of drawn labels in Trainer and SFTTrainer: real runs, against plain cross-entropy."""

from __future__ import annotations

import copy
import inspect
from types import SimpleNamespace

import pytest
import torch
from conftest import VOCAB_SIZE
from peft import get_peft_model
from trainees import compiles, dataset, documents, lora, make_trainee, make_trainer, weights

from toedit_collate.head.soft_labels import soft_cross_entropy
from toedit_collate.training.drawn_loss import (
    check_can_use_draws,
    check_uses_drawn_labels,
    use_drawn_labels,
)

N = 4


def drawn(labels: torch.Tensor, num_draws: int = N) -> torch.Tensor:
    """(B, T, num_draws, 2): other ids for each label, which its own id and its place decide."""
    spread = torch.arange(num_draws) * (0 if num_draws == 1 else 7)
    ids = (labels.clamp(min=0)[..., None] + spread) % VOCAB_SIZE
    counts = torch.zeros_like(ids)
    counts[..., 0] = num_draws - 1 if num_draws > 1 else 1
    counts[..., -1] = 1
    known = (labels != -100)[..., None]
    return torch.where(known[..., None], torch.stack([ids, counts], -1), 0).int()


class WithDraws:
    """A collator that adds draws, as the edit does."""

    def __init__(self, base, num_draws: int = N) -> None:
        self.base, self.num_draws = base, num_draws

    def __call__(self, features):
        batch = dict(self.base(features))
        return {**batch, "draws": drawn(batch["labels"], self.num_draws)}


def run(folder, tokenizer, *, draws: int | None, model=None, evaluate=False, **settings):
    """Train; returns losses, weights and the trainer."""
    trainer, _ = make_trainer(folder, tokenizer, model=model, **settings)
    if evaluate:
        trainer.eval_dataset = dataset(documents(4, seed=5))
    if draws is not None:
        use_drawn_labels(trainer.model)
        loader = trainer.get_train_dataloader
        base = trainer.data_collator

        def with_draws():
            trainer.data_collator = WithDraws(base, draws)
            try:
                return loader()
            finally:
                trainer.data_collator = base

        trainer.get_train_dataloader = with_draws
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, weights(trainer.model), trainer


def assert_close(ours, theirs, atol=2e-5):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=atol, rtol=1e-4)


@pytest.mark.parametrize("kind", ["Trainer", "SFTTrainer"])
@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}], ids=["", "accum"])
def test_one_draw_is_plain_training(tmp_path, tokenizer, kind, settings):
    """With a single draw, which is the label, losses and weights are those without draws."""
    plain = run(tmp_path, tokenizer, draws=None, kind=kind, optim="sgd", **settings)
    ours = run(tmp_path, tokenizer, draws=1, kind=kind, optim="sgd", **settings)
    assert ours[0] == pytest.approx(plain[0], abs=2e-5)
    assert_close(ours[1], plain[1])


@pytest.mark.parametrize("kind", ["Trainer", "SFTTrainer"])
def test_accumulated_rows_weigh_as_rows_at_once(tmp_path, tokenizer, kind):
    """Four steps of 2 rows of different lengths give the gradient of 8 rows at once."""
    options = {"kind": kind, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0}
    few = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    ours = run(tmp_path, tokenizer, draws=N, **options, **few)
    whole = run(tmp_path, tokenizer, draws=N, per_device_train_batch_size=8, **options)
    assert ours[0] == pytest.approx(whole[0], abs=1e-5)
    assert_close(ours[1], whole[1])


@pytest.mark.parametrize("kind", ["Trainer", "SFTTrainer"])
def test_the_loss_is_that_of_the_definition(tmp_path, tokenizer, kind):
    rows = documents(2)
    model = make_trainee()
    before = copy.deepcopy(model)
    losses, _, trainer = run(
        tmp_path, tokenizer, draws=N, kind=kind, model=model, train=dataset(rows), max_steps=1
    )
    features = [{"input_ids": row} for row in rows]
    base = trainer.data_collator
    batch = dict(
        base(features if kind == "Trainer" else [dict(f, labels=f["input_ids"]) for f in features])
    )
    with torch.no_grad():
        logits = before(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = soft_cross_entropy(logits, drawn(batch["labels"]), batch["labels"])
    assert losses[0] == pytest.approx(float(expected), abs=2e-5)


@pytest.mark.parametrize("packing", ["bfd", "wrapped"])
def test_packed_rows(tmp_path, tokenizer, packing):
    options = {
        "kind": "SFTTrainer", "packing": True, "packing_strategy": packing, "max_length": 32,
        "optim": "sgd", "per_device_train_batch_size": 1,
    }  # fmt: skip
    plain = run(tmp_path, tokenizer, draws=None, **options)
    ours = run(tmp_path, tokenizer, draws=1, **options)
    assert ours[0] == pytest.approx(plain[0], abs=2e-5)
    assert_close(ours[1], plain[1])


@pytest.mark.parametrize("kind", ["Trainer", "SFTTrainer"])
def test_lora_and_gradient_checkpointing(tmp_path, tokenizer, kind):
    options = {"kind": kind, "gradient_checkpointing": True, "optim": "sgd"}

    def model():
        torch.manual_seed(3)
        return get_peft_model(make_trainee(), lora())

    plain = run(tmp_path, tokenizer, draws=None, model=model(), **options)
    ours = run(tmp_path, tokenizer, draws=1, model=model(), **options)
    assert ours[0] == pytest.approx(plain[0], abs=2e-5)
    assert_close(ours[1], plain[1])


@pytest.mark.parametrize("kind", ["Trainer", "SFTTrainer"])
def test_mixed_precision(tmp_path, tokenizer, kind):
    """The layers compute in bfloat16, and so does the head; the loss is in float32."""
    options = {"kind": kind, "optim": "sgd", "bf16": True, "max_steps": 2}
    plain = run(tmp_path, tokenizer, draws=None, **options)
    ours = run(tmp_path, tokenizer, draws=1, **options)
    assert ours[0] == pytest.approx(plain[0], rel=2e-3)
    assert_close(ours[1], plain[1], atol=1e-3)


def test_a_copy_of_the_model_has_its_own_weights():
    model = make_trainee()
    use_drawn_labels(model)
    ids = torch.arange(8)[None]
    batch = {"input_ids": ids, "labels": ids, "draws": drawn(ids)}
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.lm_head.weight.zero_()
        assert float(copied(**batch).loss) == pytest.approx(torch.tensor(VOCAB_SIZE).log())
        assert not copied(input_ids=ids).logits.any()
        assert model(input_ids=ids).logits.any()


def test_the_signature_of_forward_stays():
    """A Trainer drops the columns that are not in it."""
    model = make_trainee()
    before = inspect.signature(model.forward)
    use_drawn_labels(model)
    assert inspect.signature(model.forward) == before


def test_a_head_with_an_adapter_uses_its_logits(tmp_path, tokenizer):
    def model():
        torch.manual_seed(3)
        made = get_peft_model(make_trainee(), lora(target_modules=["q_proj", "lm_head"]))
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        return made

    plain = run(tmp_path, tokenizer, draws=None, model=model(), optim="sgd")
    ours = run(tmp_path, tokenizer, draws=1, model=model(), optim="sgd")
    assert ours[0] == pytest.approx(plain[0], abs=2e-5)
    assert_close(ours[1], plain[1])


@compiles
@pytest.mark.slow
def test_torch_compile(tmp_path, tokenizer):
    options = {"optim": "sgd", "torch_compile": True, "torch_compile_backend": "aot_eager"}
    plain = run(tmp_path, tokenizer, draws=N, optim="sgd")
    ours = run(tmp_path, tokenizer, draws=N, **options)
    assert ours[0] == pytest.approx(plain[0], abs=2e-5)
    assert_close({k.removeprefix("_orig_mod."): v for k, v in ours[1].items()}, plain[1])


@pytest.mark.parametrize("kind", ["Trainer", "SFTTrainer"])
def test_evaluation_uses_the_models_own_loss(tmp_path, tokenizer, kind):
    """The same weights evaluate to the same loss with and without the installed loss."""
    _, state, trainer = run(tmp_path, tokenizer, draws=N, kind=kind, evaluate=True, max_steps=2)
    other, _ = make_trainer(tmp_path, tokenizer, kind=kind)
    other.model.load_state_dict(state)
    other.eval_dataset = trainer.eval_dataset
    assert trainer.evaluate()["eval_loss"] == other.evaluate()["eval_loss"]


def test_a_second_call_changes_nothing():
    model = make_trainee()
    with pytest.raises(ValueError, match="num_draws > 1"):
        check_uses_drawn_labels(model)
    use_drawn_labels(model)
    forward = model.forward
    use_drawn_labels(get_peft_model(model, lora()))
    assert model.forward is forward
    check_uses_drawn_labels(model)


@pytest.mark.parametrize(
    ("kind", "settings", "arguments", "match"),
    [
        ("Trainer", {"label_smoothing_factor": 0.1}, {}, r"label_smoothing_factor=0\.1"),
        ("SFTTrainer", {"loss_type": "dft"}, {}, "loss_type='dft'"),
        ("Trainer", {}, {"compute_loss_func": lambda *a, **k: 0}, "compute_loss_func"),
    ],
)
def test_refusals(tmp_path, tokenizer, kind, settings, arguments, match):
    trainer, _ = make_trainer(
        tmp_path, tokenizer, kind=kind, trainer_arguments=arguments, **settings
    )
    with pytest.raises(ValueError, match=match):
        check_can_use_draws(trainer)


@pytest.mark.parametrize("parallel", ["cp_enabled", "sp_enabled"])
def test_context_and_sequence_parallelism_are_refused(tmp_path, tokenizer, parallel):
    trainer, _ = make_trainer(tmp_path, tokenizer)
    names = {"cp_enabled": False, "sp_enabled": False, parallel: True}
    trainer.accelerator.state.parallelism_config = SimpleNamespace(**names)
    try:
        with pytest.raises(ValueError, match=parallel):
            check_can_use_draws(trainer)
    finally:
        trainer.accelerator.state.parallelism_config = None


def test_data_parallel_is_refused(tmp_path, tokenizer):
    trainer, _ = make_trainer(tmp_path, tokenizer)
    trainer.args._n_gpu = 2
    with pytest.raises(ValueError, match=r"DataParallel over 2 GPUs"):
        check_can_use_draws(trainer)


def test_draws_without_labels_are_refused(tokenizer):
    model = make_trainee()
    use_drawn_labels(model)
    ids = torch.arange(8)[None]
    with pytest.raises(ValueError, match="no labels"):
        model(input_ids=ids, draws=drawn(ids))
