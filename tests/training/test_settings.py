"""Settings of Trainer and PEFT: a prior that selects nothing leaves training bit for bit."""

import pytest
import torch
from conftest import VOCAB_SIZE, make_llama, make_tokenizer
from datasets import Dataset, IterableDataset
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    C3AConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    RandLoraConfig,
    ShiraConfig,
    TrainableTokensConfig,
    VBLoRAConfig,
    VeraConfig,
    get_peft_model,
)
from trainees import (
    IDLE,
    Recorder,
    assert_same_weights,
    by_first_token,
    dataset,
    documents,
    lora,
    make_prior,
    make_trainee,
    make_trainer,
    numbers_logged,
    weights,
)
from transformers import (
    DataCollatorForLanguageModeling,
    MixtralConfig,
    MixtralForCausalLM,
    TrainerCallback,
)

from toedit_collate import EditPolicy, Prior, ToEditCollator

TEXTS = documents(8)
HELD_OUT = documents(3, seed=5)

SWITCHES = {
    "accumulation": {"gradient_accumulation_steps": 2},
    "accumulation with a remainder": {"gradient_accumulation_steps": 3},
    "bf16": {"bf16": True},
    "checkpointing": {"gradient_checkpointing": True},
    "reentrant checkpointing": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
    },
    "columns stay": {"remove_unused_columns": False},
    "drop the last batch": {"dataloader_drop_last": True, "per_device_train_batch_size": 3},
    "even batches": {"accelerator_config": {"even_batches": False}},
    "split batches": {"accelerator_config": {"split_batches": True}},
    "seedable sampler": {"accelerator_config": {"use_seedable_sampler": False}},
    "evaluation at the start": {"eval_on_start": True, "eval_strategy": "epoch"},
    "evaluation every step": {"eval_strategy": "steps", "eval_steps": 1},
    "evaluation with accumulation": {"eval_strategy": "epoch", "eval_accumulation_steps": 1},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "no clipping": {"max_grad_norm": 0.0},
    "no NaN filter": {"logging_nan_inf_filter": False},
    "embedding noise": {"neftune_noise_alpha": 5.0},
    "Adafactor": {"optim": "adafactor"},
    "SGD": {"optim": "sgd"},
    "schedule": {"lr_scheduler_type": "cosine", "warmup_steps": 1, "weight_decay": 0.1},
    "saving": {"save_strategy": "steps", "save_steps": 1, "save_only_model": True},
    "smaller batches if memory is short": {"auto_find_batch_size": True},
    "tokens are counted": {"include_num_input_tokens_seen": "all"},
    "real tokens are counted": {"include_num_input_tokens_seen": "non_padding"},
    "tokens are not averaged": {"average_tokens_across_devices": False},
    "losses only": {"prediction_loss_only": True, "eval_strategy": "epoch"},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
    "workers": {"dataloader_num_workers": 1},
}


def pair(folder, tokenizer, *, way="attach", model=make_trainee, **settings):
    """The same run without editing, and with a prior that selects nothing."""
    trainers = []
    for one in (None, way):
        trainee = model()
        prior = settings.pop("prior", None) if one else None
        trainer, collator = make_trainer(
            folder / str(one), tokenizer, way=one, policy=IDLE, model=trainee, prior=prior,
            train=dataset(TEXTS), learning_rate=1e-2,
            trainer_arguments={"eval_dataset": dataset(HELD_OUT)}, **settings,
        )  # fmt: skip
        trainer.train()
        trainers.append(trainer)
    assert collator.stats["scored"] > 0
    assert collator.stats["selected"] == 0
    return trainers


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_of_the_trainer(tmp_path, tokenizer, name):
    plain, ours = pair(tmp_path, tokenizer, **SWITCHES[name])
    assert_same_weights(weights(ours.model), weights(plain.model))
    assert not torch.equal(ours.model.lm_head.weight, make_trainee().lm_head.weight)
    assert ours.state.num_input_tokens_seen == plain.state.num_input_tokens_seen
    for prefix in ("loss", "grad_norm", "eval_"):
        assert numbers_logged(ours, prefix) == numbers_logged(plain, prefix)


WIDE = {"target_modules": ["q_proj", "v_proj"]}
ADAPTERS = {
    "rank-stabilised": LoraConfig(use_rslora=True, **WIDE),
    "DoRA": LoraConfig(use_dora=True, **WIDE),
    "all linear layers": LoraConfig(target_modules="all-linear"),
    "some layers": LoraConfig(layers_to_transform=[0], **WIDE),
    "patterns": LoraConfig(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}, **WIDE),
    "Gaussian": LoraConfig(init_lora_weights="gaussian", **WIDE),
    "orthogonal": LoraConfig(init_lora_weights="orthogonal", r=8, **WIDE),
    "dropout": LoraConfig(lora_dropout=0.3, **WIDE),
    "weights of the head": LoraConfig(modules_to_save=["lm_head"], **WIDE),
    "new embeddings": LoraConfig(trainable_token_indices=[3, 4], **WIDE),
    "parameters": LoraConfig(target_parameters=["q_proj.weight"], target_modules=["v_proj"]),
    "AdaLoRA": AdaLoraConfig(total_step=8, **WIDE),
    "IA3": IA3Config(feedforward_modules=[], **WIDE),
    "LoHa": LoHaConfig(**WIDE),
    "LoKr": LoKrConfig(**WIDE),
    "VeRA": VeraConfig(r=4, target_modules=["q_proj"]),
    "VB-LoRA": VBLoRAConfig(r=2, num_vectors=4, vector_length=4, topk=2, **WIDE),
    "OFT": OFTConfig(r=0, oft_block_size=4, **WIDE),
    "BOFT": BOFTConfig(boft_block_size=4, **WIDE),
    "HRA": HRAConfig(r=2, **WIDE),
    "FourierFT": FourierFTConfig(n_frequency=10, **WIDE),
    "norms": LNTuningConfig(target_modules=["input_layernorm"]),
    "biases": LoraConfig(bias="lora_only", **WIDE),
    "all biases": LoraConfig(bias="all", **WIDE),
    "embeddings": LoraConfig(target_modules=["embed_tokens", "q_proj"]),
    "weights of the embeddings": LoraConfig(modules_to_save=["embed_tokens"], **WIDE),
    "weights of a norm": LoraConfig(modules_to_save=["norm"], **WIDE),
    "all but some": LoraConfig(target_modules="all-linear", exclude_modules=["o_proj"]),
    "MLP": LoraConfig(target_modules=r".*mlp\.(up|down)_proj"),
    "C3A": C3AConfig(block_size=4, **WIDE),
    "MiSS": MissConfig(r=4, **WIDE),
    "RandLoRA": RandLoraConfig(r=4, target_modules=["q_proj"]),
    "SHiRA": ShiraConfig(r=2, **WIDE),
    "single tokens": TrainableTokensConfig(token_indices=[3, 4]),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "encoded prompt": PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8
    ),
}


# Much like one of the others, to a prior.
ALIKE = {
    "rank-stabilised", "some layers", "patterns", "Gaussian", "orthogonal", "dropout", "LoHa",
    "LoKr", "VB-LoRA", "BOFT", "HRA", "FourierFT", "all biases", "weights of a norm",
    "all but some", "MLP", "C3A", "MiSS", "RandLoRA", "SHiRA", "encoded prompt",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in ADAPTERS],
)
def test_adapters_of_peft(tmp_path, tokenizer, name):
    """The prior is the frozen base of the model in training, whatever PEFT puts on it."""
    trained = []
    for way in (None, "attach"):
        torch.manual_seed(0)
        model = get_peft_model(make_trainee(), ADAPTERS[name])
        prior = Prior.shared(model) if way else None
        trainer, collator = make_trainer(
            tmp_path, tokenizer, way=way, policy=IDLE, model=model, prior=prior,
            train=dataset(TEXTS), learning_rate=1e-2,
        )  # fmt: skip
        trainer.train()
        trained.append(weights(model))
    assert collator.stats["scored"] > 0
    assert_same_weights(*trained)


def test_experts_as_parameters(tmp_path, tokenizer):
    def make():
        torch.manual_seed(0)
        config = MixtralConfig(
            vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, pad_token_id=2,
        )  # fmt: skip
        model = MixtralForCausalLM(config)
        experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        return get_peft_model(model, lora(target_parameters=experts, lora_dropout=0.0))

    trained = []
    for way in (None, "attach"):
        model = make()
        trainer, collator = make_trainer(
            tmp_path, tokenizer, way=way, policy=IDLE, model=model, train=dataset(TEXTS),
            prior=Prior.shared(model) if way else None, learning_rate=1e-2,
        )  # fmt: skip
        trainer.train()
        trained.append(weights(model))
    assert any("experts" in name and "lora_B" in name for name in trained[0])
    assert collator.stats["scored"] > 0
    assert_same_weights(*trained)


@pytest.mark.parametrize("refresh", [None, "epoch", "save", 1])
def test_the_best_model_is_loaded_at_the_end(tmp_path, tokenizer, refresh):
    def model():
        torch.manual_seed(0)
        return get_peft_model(make_llama(), lora(target_modules="all-linear"))

    trained, losses = [], []
    for way in (None, "attach"):
        trainee = model()
        prior = Prior.shared(trainee) if way else None
        trainer, _ = make_trainer(
            tmp_path / str(way), tokenizer, way=way, policy=IDLE, model=trainee, prior=prior,
            refresh=refresh, train=dataset(TEXTS), learning_rate=1e-1, num_train_epochs=2,
            load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=True,
            eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
            trainer_arguments={"eval_dataset": dataset(HELD_OUT)},
        )  # fmt: skip
        trainer.train()
        trained.append({n: w for n, w in weights(trainee).items() if "toedit_prior" not in n})
        losses.append([entry["eval_loss"] for entry in numbers_logged(trainer, "eval_")])
    assert losses[0] == losses[1]
    assert max(losses[0]) != losses[0][-1]  # or the best would be the last
    assert_same_weights(*trained)


@pytest.mark.parametrize("refresh", [2, "save"])
def test_a_compiled_trainee_is_refreshed_and_resumed(tmp_path, tokenizer, refresh):
    """A run of a compiled model that stops halfway ends as the one that never did."""
    ended = []
    for stops in (False, True):
        folder = tmp_path / str(stops)
        for steps in [2, 4] if stops else [4]:
            trainer, collator = make_trainer(
                folder, tokenizer, way="attach", model=make_llama(), train=dataset(TEXTS),
                refresh=refresh, save_strategy="steps", save_steps=2, learning_rate=1e-2,
                torch_compile=True, torch_compile_backend="eager", max_steps=4,
                callbacks=[StopAt(steps)],
            )  # fmt: skip
            trainer.train(resume_from_checkpoint=steps == 4 and stops)
        assert collator.prior.generation == 2
        ended.append(weights(trainer.model))
    assert_same_weights(*ended)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


@pytest.mark.parametrize("way", ["attach", "collator"])
def test_evaluations_of_many_kinds(tmp_path, tokenizer, way):
    """A dict of sets, the training set, and predictions."""
    sets = {"held out": dataset(HELD_OUT), "trained": dataset(TEXTS)}
    trainer, collator = make_trainer(
        tmp_path, tokenizer, way=way, train=dataset(TEXTS), eval_strategy="steps", eval_steps=2,
        trainer_arguments={"eval_dataset": sets}, learning_rate=0.0,
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    trainer.train()
    trainer.evaluate()
    trainer.evaluate(dataset(TEXTS))
    trainer.predict(dataset(HELD_OUT))
    seen = recorder.rows(training=False)
    assert len(seen) == 3 * (3 + 8) + 8 + 3
    assert all(row in TEXTS + HELD_OUT for row in seen)
    assert all(row not in TEXTS for row in recorder.rows(training=True))
    assert collator.stats["batches"] == 4


def test_a_prior_with_a_wider_vocabulary(tmp_path, tokenizer):
    """Both are padded past the tokenizer, to different widths."""
    prior = Prior(make_llama(vocab_size=VOCAB_SIZE + 64), tokenizer)
    trainer, collator = make_trainer(
        tmp_path, tokenizer, way="attach", prior=prior, train=dataset(TEXTS),
        policy=EditPolicy(region="all", sampler="full"),
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    trainer.train()
    assert collator.stats["changed"] > 0
    assert max(map(max, recorder.rows(training=True))) < len(tokenizer)


def test_a_pad_token_that_ends_texts(tmp_path):
    """Editing sees the eos of a text, and no padding, though both are one token."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    texts = [[*text, tokenizer.eos_token_id] for text in TEXTS]
    trainer, collator = make_trainer(tmp_path, tokenizer, way="attach", train=dataset(texts))
    recorder = Recorder(trainer.model)
    trainer.train()
    assert collator.stats["tokens"] == sum(map(len, texts))
    trained = recorder.rows(training=True)
    assert all(row[-1] == tokenizer.eos_token_id for row in trained)
    apart, _ = make_trainer(tmp_path, make_tokenizer(), way="attach", train=dataset(texts))
    recorder = Recorder(apart.model)
    apart.train()
    assert trained == recorder.rows(training=True)


@pytest.mark.parametrize("ignore_data_skip", [False, True])
def test_a_resumed_run_skips_data_or_not(tmp_path, tokenizer, ignore_data_skip):
    def run(folder, steps, **resume):
        trainer, _ = make_trainer(
            folder, tokenizer, way="attach", train=dataset(TEXTS), max_steps=4,
            save_strategy="steps", save_steps=2, ignore_data_skip=ignore_data_skip,
            callbacks=[StopAt(steps)],
        )  # fmt: skip
        recorder = Recorder(trainer.model)
        trainer.train(**resume)
        return recorder.rows(training=True)

    whole = run(tmp_path / "whole", 4)
    first = run(tmp_path / "parts", 2)
    second = run(tmp_path / "parts", 4, resume_from_checkpoint=True)
    assert first == whole[:4]
    assert second == whole[:4] if ignore_data_skip else whole[4:]


def test_an_iterable_dataset_with_workers(tmp_path, tokenizer):
    def rows():
        for text in TEXTS:
            yield {"input_ids": text}

    found = []
    for workers in (0, 2):
        train = IterableDataset.from_generator(rows)
        trainer, collator = make_trainer(
            tmp_path, tokenizer, way="attach", train=train, max_steps=4,
            dataloader_num_workers=workers,
        )  # fmt: skip
        recorder = Recorder(trainer.model)
        trainer.train()
        found.append(by_first_token(recorder.rows(training=True)))
    assert found[0].keys() == {text[0] for text in TEXTS}
    assert all(found[0][number] == row for number, row in found[1].items())
    assert collator.stats["changed"] > 0


def test_rows_that_are_made_when_they_are_read(tmp_path, tokenizer):
    """`with_transform`: the columns of the data set are not those of the rows."""
    numbers = Dataset.from_dict({"number": list(range(8))})
    made = numbers.with_transform(
        lambda batch: {"input_ids": [TEXTS[number] for number in batch["number"]]}
    )
    trainer, _ = make_trainer(
        tmp_path, tokenizer, way="attach", train=made, remove_unused_columns=False
    )
    recorder = Recorder(trainer.model)
    trainer.train()
    plain, _ = make_trainer(tmp_path, tokenizer, way="attach", train=dataset(TEXTS))
    expected = Recorder(plain.model)
    plain.train()
    assert recorder.rows(training=True) == expected.rows(training=True)


def test_masked_language_modelling_is_refused(tokenizer):
    tokenizer.mask_token = "<|im_end|>"
    base = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=0.9)
    collator = ToEditCollator(make_prior(tokenizer), base_collator=base)
    with pytest.raises(ValueError, match=r"labels must be -100 or equal to input_ids.*masked"):
        collator([{"input_ids": text} for text in TEXTS])["input_ids"]
