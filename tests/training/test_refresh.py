"""Swaps of the prior in a run of training: refresh = N, "epoch", "save"; and the journal in it."""

import copy
import itertools
import logging
import shutil
from functools import partial

import pytest
import torch
from conftest import make_llama, make_tokenizer
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from trainees import (
    IDLE,
    Recorder,
    assert_same_weights,
    by_first_token,
    dataset,
    documents,
    logprobs,
    lora,
    make_trainee,
    make_trainer,
    numbers_logged,
    weights,
)
from transformers import LlamaForCausalLM, Trainer, TrainerCallback

from toedit_collate import EditPolicy, Journal, Prior, ToEditCallback, ToEditCollator, edit_tokens

TEXTS, HELD_OUT = documents(16), documents(4, seed=3)
SOURCE = by_first_token(TEXTS)
PROBE = torch.tensor([text[:8] for text in TEXTS[:4]])
TOKENIZER = make_tokenizer()
POLICY = EditPolicy(threshold=0.05, exclude_original=True, redraw="never")
KINDS = ["full", "lora", "shared"]


def mostly_slow(fast, *choices):
    """All combinations, of which a few are fast tests."""
    return [
        pytest.param(*combined, marks=() if combined in fast else pytest.mark.slow)
        for combined in itertools.product(*choices)
    ]


# 4 steps to an epoch, 8 in all.
SETTINGS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "learning_rate": 1e-2,
}


def make_models(kind, *, config=(), prior_dtype=torch.float32, **adapter):
    """A trainee that starts as the prior's model, and the prior."""
    model = make_llama(**{"attention_dropout": 0.1, **dict(config)})
    separate = copy.deepcopy(model).to(prior_dtype)
    if kind != "full":
        torch.manual_seed(0)
        adapter = {"target_modules": "all-linear", "lora_dropout": 0.1, **adapter}
        model = get_peft_model(model, lora(**adapter))
    return model, Prior.shared(model) if kind == "shared" else Prior(separate)


def frozen_copy(model, dtype=torch.float32):
    """A prior of its own, which scores as the model in training does now."""
    with torch.random.fork_rng():
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        copied = LlamaForCausalLM(base.config)
        if base is not model:
            copied = get_peft_model(copied, copy.deepcopy(model.peft_config["default"]))
    names = copied.state_dict().keys()
    copied.load_state_dict({n: w for n, w in model.state_dict().items() if n in names})
    return Prior(copied.to(dtype), TOKENIZER)


class Watch(TrainerCallback):
    """Keeps a copy of the trainee at each swap, and compares the prior with it ever after."""

    def __init__(self, prior, first):
        self.prior = prior
        self.references = [first]
        self.swapped_at = []
        self.compared = 0

    def look(self, args, state, control, model=None, **kwargs):
        if self.prior.generation == len(self.references):
            self.swapped_at.append(state.global_step)
            self.references.append(frozen_copy(model, self.prior.head.weight.dtype))
        assert self.prior.generation == len(self.references) - 1
        ours, theirs = (logprobs(p, PROBE) for p in (self.prior, self.references[-1]))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        self.compared += 1

    on_step_end = on_epoch_end = on_save = look


class Run:
    """A run of training with editing, in which each batch is written down with its generation."""

    def __init__(
        self, folder, tokenizer, prior_is, refresh, *, models=None, policy=POLICY, callbacks=(),
        **settings,
    ):  # fmt: skip
        model, self.prior = models or make_models(prior_is)
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        scoring = base if prior_is == "shared" else self.prior.model
        with torch.random.fork_rng():
            first = LlamaForCausalLM(scoring.config).to(self.prior.head.weight.dtype)
        first.load_state_dict(
            {
                n.replace(".base_layer.", ".").replace(".original_module.", "."): w
                for n, w in scoring.state_dict().items()
                if "lora_" not in n and ".modules_to_save." not in n
            }
        )
        self.watch = Watch(self.prior, Prior(first, TOKENIZER))
        self.trainer, self.collator = make_trainer(
            folder, tokenizer, model=model, prior=self.prior, policy=policy, refresh=refresh,
            **{"way": "callback", "train": dataset(TEXTS), "callbacks": [*callbacks, self.watch],
               **SETTINGS, **settings},
        )  # fmt: skip
        self.recorder = Recorder(base)
        self.generations = []
        base.register_forward_pre_hook(self._note)
        self.trainer.train()

    def _note(self, module, args):
        if module.training:
            self.generations.append(self.prior.generation)

    def batches(self):
        """Generation and rows of each batch that was trained on."""
        return list(zip(self.generations, self.recorder.batches(training=True), strict=True))


def assert_edited_by(references, batches):
    """Each row is what the reference prior of its generation makes of the source."""
    edited = 0
    for generation, rows in batches:
        for row in rows:
            source = torch.tensor([SOURCE[row[0]]])
            expected = edit_tokens(
                references[generation], source, policy=POLICY, generation=generation
            )
            assert expected.input_ids.tolist() == [row]
            edited += int(expected.changed.sum())
    assert edited > 0


def assert_all_differ(references):
    for before, after in itertools.pairwise(references):
        assert (logprobs(before, PROBE) - logprobs(after, PROBE)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("kind", "refresh"),
    mostly_slow(
        {("full", 3), ("full", "save"), ("lora", "save"), ("shared", "epoch"), ("shared", "save")},
        KINDS,
        [3, "epoch", "save"],
    ),
)
def test_the_prior_becomes_the_trainee_as_it_was(tmp_path, tokenizer, kind, refresh):
    models = make_models(kind)
    base = models[1].model.get_base_model() if kind == "shared" else models[1].model
    places = {p.data_ptr() for p in base.parameters()}
    run = Run(
        tmp_path, tokenizer, kind, refresh, models=models, save_strategy="steps", save_steps=3,
        eval_strategy="steps", eval_steps=2, trainer_arguments={"eval_dataset": dataset(HELD_OUT)},
    )  # fmt: skip
    steps = {3: [3, 6], "epoch": [4, 8], "save": [3, 6, 8]}[refresh]
    assert run.watch.swapped_at == steps
    assert run.watch.compared == 8 + 2 + 3  # steps, epochs, checkpoints
    assert run.prior.generation == len(steps)
    assert_all_differ(run.watch.references)
    assert_edited_by(run.watch.references, run.batches())
    # Step s trains on two batches that were edited after the swaps of the steps before.
    assert run.generations == [sum(step <= s for step in steps) for s in range(8) for _ in (0, 1)]
    assert {p.data_ptr() for p in base.parameters()} >= places
    assert sorted(run.recorder.rows(training=False)) == sorted(HELD_OUT * 4)
    logged = [e["toedit/generation"] for e in numbers_logged(run.trainer, "toedit/")]
    # A step is logged after the swap of every third, and before that of its epoch or checkpoint.
    late = {3: 0, "epoch": 1, "save": 1}[refresh]
    assert logged == [1 + sum(step + late <= s for step in steps) for s in range(1, 9)]


@pytest.mark.parametrize(
    ("kind", "refresh"),
    mostly_slow({("full", "epoch"), ("lora", 1), ("shared", "save")}, KINDS, [1, "epoch", "save"]),
)
def test_training_is_undisturbed_bit_for_bit(tmp_path, tokenizer, kind, refresh):
    """Dropout in the trainee: a single random number more would show."""
    runs = []
    saving = {"save_strategy": "steps", "save_steps": 3}
    for way in (None, "callback"):
        model, prior = make_models(kind)
        trainer, _ = make_trainer(
            tmp_path / str(way), tokenizer, way=way, model=model, policy=IDLE,
            prior=prior if way else None, refresh=refresh, train=dataset(TEXTS), **SETTINGS,
            **saving,
        )  # fmt: skip
        trainer.train()
        runs.append(
            {
                "losses": numbers_logged(trainer, "loss"),
                "random": torch.get_rng_state(),
                "grads": {n: p.requires_grad for n, p in model.named_parameters()},
                "training": {n: m.training for n, m in model.named_modules()},
                "trained": [len(g["params"]) for g in trainer.optimizer.param_groups],
                "weights": weights(model),
            }
        )
        if way:
            assert prior.generation == {1: 8, "epoch": 2, "save": 3}[refresh]
    without, swapped = runs
    for log in swapped["losses"]:
        for key in [key for key in log if key.startswith("toedit/")]:
            del log[key]
    assert swapped["losses"] == without["losses"]
    assert torch.equal(swapped["random"], without["random"])
    assert swapped["trained"] == without["trained"]
    # A shared prior's snapshot is in the trainee's model, frozen.
    frozen = {name for name in swapped["grads"] if ".toedit_prior." in name}
    assert bool(frozen) == (kind == "shared")
    assert not any(swapped["grads"].pop(name) for name in frozen)
    assert swapped["grads"] == without["grads"]
    for name, training in without["training"].items():
        assert swapped["training"][name] == training
    kept = {n: w for n, w in swapped["weights"].items() if ".toedit_prior." not in n}
    assert_same_weights(kept, without["weights"])


VARIANTS = {
    "bf16 prior": ("full", {"prior_dtype": torch.bfloat16}, {}),
    "tied": ("full", {"config": {"tie_word_embeddings": True}}, {}),
    "tied, lora": ("lora", {"config": {"tie_word_embeddings": True}}, {}),
    "one checkpoint kept": ("full", {}, {"save_total_limit": 1}),
    "dora": ("lora", {"use_dora": True}, {}),
    "dora, shared": ("shared", {"use_dora": True}, {}),
    "whole head too": ("lora", {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, {}),
    "whole head too, shared": (
        "shared", {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, {},
    ),
    "rslora, q only": ("shared", {"use_rslora": True, "target_modules": ["q_proj"]}, {}),
    "sft": ("lora", {}, {"kind": "SFTTrainer", "way": "attach"}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "refresh"),
    mostly_slow(
        {("bf16 prior", 3), ("tied", "save"), ("whole head too", 3)}, VARIANTS, [3, "save"]
    ),
)
def test_variants(tmp_path, tokenizer, name, refresh):
    kind, model_settings, settings = VARIANTS[name]
    run = Run(
        tmp_path, tokenizer, kind, refresh, models=make_models(kind, **model_settings),
        save_strategy="steps", save_steps=3, **settings,
    )  # fmt: skip
    assert run.prior.generation == {3: 2, "save": 3}[refresh]
    assert_edited_by(run.watch.references, run.batches())


@pytest.fixture
def small_shards(monkeypatch):
    save = LlamaForCausalLM.save_pretrained
    monkeypatch.setattr(
        LlamaForCausalLM,
        "save_pretrained",
        lambda *args, **settings: save(*args, **{**settings, "max_shard_size": "20KB"}),
    )


def test_sharded_safetensors(tmp_path, tokenizer, small_shards):
    run = Run(tmp_path, tokenizer, "full", "save", save_strategy="steps", save_steps=3)
    assert len(list((tmp_path / "checkpoint-3").glob("model-*.safetensors"))) > 2
    assert run.prior.generation == 3
    assert_edited_by(run.watch.references, run.batches())


def change(how, file, folder):
    tensors = load_file(folder / file)
    name = sorted(tensors)[0]
    tensors[name] = how(tensors[name])
    save_file(tensors, folder / file, {"format": "pt"})


def cut(file, folder):
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])


def to_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lose_shards(folder):
    shards = sorted(folder.glob("model-*.safetensors"))
    for shard in shards[len(shards) // 2 :]:
        shard.unlink()


def nan(tensor):
    return tensor * torch.nan


def shorter(tensor):
    return tensor[:-1].clone()


FULL, ADAPTER = "model.safetensors", "adapter_model.safetensors"
SPOILED = {
    "no folder": ("full", shutil.rmtree, "does not exist"),
    "no file": ("full", lambda folder: (folder / FULL).unlink(), "has no model.safetensors"),
    "cut": ("full", partial(cut, FULL), "is not a complete safetensors file"),
    "half the shards": ("full", lose_shards, "does not fit the prior: missing"),
    "not finite": ("full", partial(change, nan, FULL), "is not finite"),
    "another shape": ("full", partial(change, shorter, FULL), "has shape"),
    "pickle only": ("full", to_pickle, "only safetensors are read"),
    "adapter, cut": ("lora", partial(cut, ADAPTER), "is not a complete safetensors"),
    "adapter, not finite": ("shared", partial(change, nan, ADAPTER), "is not finite"),
    "no adapter": ("shared", lambda folder: (folder / ADAPTER).unlink(), "has no model.safeten"),
    "adapter, another shape": ("shared", partial(change, shorter, ADAPTER), "has shape"),
}


class TestBadCheckpoints:
    @pytest.mark.parametrize(
        "name",
        [pytest.param(n, marks=() if "adapter" not in n else pytest.mark.slow) for n in SPOILED],
    )
    def test_the_old_prior_works_on(self, tmp_path, tokenizer, caplog, request, name):
        """The second of four checkpoints is spoiled after it was written."""
        kind, spoil, message = SPOILED[name]
        if "shards" in name:
            request.getfixturevalue("small_shards")

        class Spoiled(Trainer):
            def _save_checkpoint(self, *args):
                super()._save_checkpoint(*args)
                if self.state.global_step == 4:
                    spoil(tmp_path / "checkpoint-4")

        with caplog.at_level(logging.ERROR, logger="toedit_collate"):
            run = Run(
                tmp_path, tokenizer, kind, "save", save_strategy="steps", save_steps=2,
                trainer_class=Spoiled,
            )  # fmt: skip
        assert run.watch.swapped_at == [2, 6, 8]
        assert run.prior.generation == 3
        assert run.generations == [g for g in (0, 1, 1, 2) for _ in range(4)]
        assert_edited_by(run.watch.references, run.batches())
        (record,) = (r for r in caplog.records if r.levelname == "ERROR")
        assert message in record.getMessage()
        assert "checkpoint-4" in record.getMessage()
        assert "Training continues with the old prior, of generation 1" in record.getMessage()

    @pytest.mark.parametrize("kind", KINDS)
    def test_live_weights_that_are_not_finite(self, tmp_path, tokenizer, caplog, kind):
        class Diverge(TrainerCallback):
            """For one step, the weights are not finite."""

            def on_optimizer_step(self, args, state, control, model=None, **kwargs):
                self.weight = next(p for p in model.parameters() if p.requires_grad)
                if state.global_step == 3:
                    self.kept = self.weight.detach().clone()
                    self.weight.data.fill_(torch.inf)

            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 4:
                    self.weight.data.copy_(self.kept)

        run = Run(tmp_path, tokenizer, kind, 2, callbacks=[Diverge()])
        assert run.watch.swapped_at == [2, 6, 8]
        (record,) = (r for r in caplog.records if r.levelname == "ERROR")
        assert "the trainee at step 4" in record.getMessage()
        assert "is not finite" in record.getMessage()
        assert_edited_by(run.watch.references, run.batches())


class TestRefusals:
    @pytest.mark.parametrize("refresh", [0, -1, 1.5, "epochs"])
    def test_refresh(self, tokenizer, refresh):
        collator = ToEditCollator(Prior(make_llama(), tokenizer))
        with pytest.raises(ValueError, match=r"refresh must be .*got"):
            ToEditCallback(collator, refresh)

    def start(self, folder, tokenizer, kind="full", refresh=2, **settings):
        models = settings.pop("models", None) or make_models(kind)
        trainer, _ = make_trainer(
            folder, tokenizer, way="callback", model=models[0], prior=models[1], refresh=refresh,
            policy=POLICY, **settings,
        )  # fmt: skip
        recorder = Recorder(trainer.model)
        try:
            trainer.train()
        finally:
            assert not recorder.rows(training=True)

    def test_no_checkpoints(self, tmp_path, tokenizer):
        with pytest.raises(ValueError, match=r"save_strategy is 'no'; set save_strategy, or refr"):
            self.start(tmp_path, tokenizer, refresh="save")

    @pytest.mark.parametrize("kind", ["full", "lora"])
    def test_another_architecture(self, tmp_path, tokenizer, kind):
        models = make_models(kind)[0], Prior(make_llama(num_hidden_layers=3))
        with pytest.raises(ValueError, match=r"does not fit the prior|is another base"):
            self.start(tmp_path, tokenizer, models=models)
        models = make_models(kind)[0], Prior(make_llama(hidden_size=64))
        with pytest.raises(ValueError, match=r"can never swap.*has shape \(.*, the prior's has \("):
            self.start(tmp_path, tokenizer, models=models)

    def test_another_base_under_the_adapter(self, tmp_path, tokenizer):
        models = make_models("lora")[0], Prior(make_trainee())
        with pytest.raises(ValueError, match="but that is another base than the trainee's"):
            self.start(tmp_path, tokenizer, models=models)

    def test_a_base_in_another_precision_is_the_same(self, tmp_path, tokenizer):
        models = make_models("lora", prior_dtype=torch.bfloat16)
        trainer, _ = make_trainer(
            tmp_path, tokenizer, way="callback", model=models[0], prior=models[1], refresh=1
        )
        trainer.train()
        assert models[1].generation == 4

    def test_a_shared_prior_without_adapter(self, tmp_path, tokenizer):
        model = make_trainee()
        with pytest.raises(ValueError, match=r"can never swap.*shares its base.*Train with LoRA"):
            self.start(tmp_path, tokenizer, models=(model, Prior.shared(model)))


JOURNALED = {
    "epoch": {"refresh": "epoch"},
    "in mid-epoch": {"refresh": 3},
    "save": {"refresh": "save", "save_strategy": "steps", "save_steps": 2},
    "never": {"refresh": None},
    "workers": {"refresh": 3, "dataloader_num_workers": 2},
    "collator alone": {"refresh": None, "way": "collator"},
    "sft": {"refresh": 3, "kind": "SFTTrainer", "way": "attach"},
}


@pytest.mark.parametrize(
    ("name", "kind"),
    mostly_slow(
        {("epoch", "full"), ("in mid-epoch", "shared"), ("workers", "full"), ("sft", "shared")},
        JOURNALED,
        ["full", "shared"],
    ),
)
def test_a_journal_replays_what_was_trained_on(tmp_path, tokenizer, name, kind):
    journal = Journal(tmp_path / "journal")
    run = Run(
        tmp_path, tokenizer, kind, journal=journal, num_train_epochs=3,
        policy=POLICY.replace(redraw="epoch"), **JOURNALED[name],
    )  # fmt: skip
    swaps = {"epoch": 3, 3: 4, "save": 6, None: 0}[JOURNALED[name]["refresh"]]
    assert run.prior.generation == swaps
    edited = {(g + 1, row[0]) for g, rows in run.batches() for row in rows}
    assert len(run.batches()) == 24
    assert journal.generations == sorted({generation for generation, _ in edited})
    changed = 0
    for generation, rows in run.batches():
        for row in rows:
            assert journal.replay(SOURCE[row[0]], generation + 1) == row
            changed += row != journal.replay(SOURCE[row[0]], generation)
    assert changed > 20
    for generation, of in journal.stats().items():
        assert of["documents"] == sum(g == generation for g, _ in edited)
