"""SFTTrainer with every kind of data, packing, PEFT: edited documents, untouched prompts."""

import functools
from itertools import pairwise

import pytest
import torch
from conftest import TEXT, make_tokenizer
from datasets import Dataset
from peft import PeftModel
from trainees import (
    Recorder,
    counted_passes,
    lora,
    make_prior,
    make_trainee,
    make_trainer,
    numbers_logged,
)

from toedit_collate import EditPolicy, Prior, ToEditCollator, attach, edit_tokens

WORDS = TEXT.split()
# Low enough that the random prior selects plenty of ordinary text.
POLICY = EditPolicy(threshold=1e-5, exclude_original=True)
DROPPING = EditPolicy(threshold=0.01, exclude_original=True, drop_below=1e-6)


def words(number, count):
    return " ".join(WORDS[(number * 5 + i * 3) % len(WORDS)] for i in range(count))


def turns(number, rounds):
    return [
        {"role": role, "content": words(number + i, 3 + i)}
        for i, role in enumerate(["user", "assistant"] * rounds)
    ]


DATA = {
    "text": [{"text": words(n, 4 + n)} for n in range(8)],
    "prompt-completion": [
        {"prompt": words(n, 4), "completion": " " + words(n + 3, 3 + n)} for n in range(8)
    ],
    "conversation": [{"messages": turns(n, 1 + n % 2)} for n in range(8)],
    "conversational prompt-completion": [
        {"prompt": turns(n, 1)[:1], "completion": turns(n, 1)[1:]} for n in range(8)
    ],
}
# name -> (data, settings of SFTConfig, whether there are prompts that are not trained on)
RUNS = {
    "text": ("text", {}, False),
    "prompt-completion": ("prompt-completion", {}, True),
    "prompt-completion, all": ("prompt-completion", {"completion_only_loss": False}, False),
    "conversation": ("conversation", {}, False),
    "assistant only": ("conversation", {"assistant_only_loss": True}, True),
    "conversational prompt": ("conversational prompt-completion", {}, True),
}
# Those that refuse a data collator of the user's; `attach` and the callback are the way in.
PACKED_RUNS = {
    "bfd": ("text", {"packing": True, "max_length": 48}, False),
    "bfd, assistant only": (
        "conversation",
        {"packing": True, "max_length": 96, "assistant_only_loss": True},
        True,
    ),
    "wrapped": (
        "text",
        {"packing": True, "packing_strategy": "wrapped", "max_length": 32},
        False,
    ),
    "padding-free": ("prompt-completion", {"padding_free": True, "max_length": None}, True),
    "padding-free, multiple of 8": (
        "prompt-completion",
        {"padding_free": True, "max_length": None, "pad_to_multiple_of": 8},
        True,
    ),
}
ALL = [(name, way) for name in RUNS for way in ("collator", "attach", "callback")]
ALL += [(name, way) for name in PACKED_RUNS for way in ("attach", "callback")]


def run(folder, tokenizer, name, way=None, **arguments):
    data, settings, _ = {**RUNS, **PACKED_RUNS}[name]
    trainer, collator = make_trainer(
        folder, tokenizer, kind="SFTTrainer", way=way, train=Dataset.from_list(DATA[data]),
        **{"learning_rate": 0.0, **settings, **arguments},
    )  # fmt: skip
    recorder = Recorder(trainer.model)
    trainer.train()
    return trainer, recorder.given, collator


@pytest.fixture(scope="module")
def unedited(tmp_path_factory):
    """What the model is given without editing, in each of the runs."""

    @functools.cache
    def given(name):
        return run(tmp_path_factory.mktemp("plain"), make_tokenizer(), name)[1]

    return given


def split(given):
    """The documents of a batch, with their labels: (ids, labels), and how many each row has."""
    pieces, counts = [], []
    for b, ids in enumerate(given.rows):
        positions = given.positions[b] if given.positions else list(range(len(ids)))
        starts = [t for t, position in enumerate(positions) if position == 0] + [len(ids)]
        spans = [slice(i, j) for i, j in pairwise(starts)]
        pieces += [(ids[span], given.labels[b][span]) for span in spans]
        counts.append(len(spans))
    return pieces, counts


def edited_alone(prior, policy, given):
    """The documents of an unedited batch, each edited by itself."""
    edited = []
    for ids, labels in split(given)[0]:
        result = edit_tokens(
            prior, torch.tensor([ids]), labels=torch.tensor([labels]), policy=policy
        )
        edited.append((result.input_ids[0].tolist(), result.labels[0].tolist()))
    return edited


@pytest.mark.parametrize(("name", "way"), ALL)
def test_each_document_is_edited_and_no_prompt_is(tmp_path, tokenizer, unedited, name, way):
    plain = unedited(name)
    _, ours, collator = run(tmp_path, tokenizer, name, way, policy=POLICY)
    prior = make_prior(tokenizer)
    has_prompts = {**RUNS, **PACKED_RUNS}[name][2]
    assert len(ours) == len(plain) > 0
    special = set(tokenizer.all_special_ids)
    changed = prompts = 0
    for before, after in zip(plain, ours, strict=True):
        assert after.positions == before.positions
        assert split(after)[0] == edited_alone(prior, POLICY, before)
        for row, labels, new, new_labels in zip(
            before.rows, before.labels, after.rows, after.labels, strict=True
        ):
            for old, label, token, new_label in zip(row, labels, new, new_labels, strict=True):
                assert new_label == (-100 if label == -100 else token)
                assert token == old or (label != -100 and old not in special)
                changed += token != old
                prompts += label == -100
    assert collator.stats["changed"] == changed > 0
    assert prompts >= 21 * bool(has_prompts)


@pytest.mark.parametrize(
    "name", ["prompt-completion", "bfd, assistant only", *list(PACKED_RUNS)[2:]]
)
def test_dropped_tokens_leave_their_document(tmp_path, tokenizer, unedited, name):
    plain = unedited(name)
    trainer, ours, collator = run(tmp_path, tokenizer, name, "attach", policy=DROPPING)
    prior = make_prior(tokenizer)
    assert collator.stats["dropped"] > 0
    assert len(ours) == len(plain)
    padding = ([tokenizer.pad_token_id], [-100])
    for before, after in zip(plain, ours, strict=True):
        found = [piece for piece in split(after)[0] if piece != padding]
        alone = [piece for piece in edited_alone(prior, DROPPING, before) if piece != padding]
        assert found == alone
    assert all(torch.isfinite(torch.tensor(e["loss"])) for e in numbers_logged(trainer, "loss"))


@pytest.mark.parametrize("name", ["text", "assistant only", "bfd", "wrapped", "padding-free"])
def test_evaluation_is_never_edited(tmp_path, tokenizer, name):
    data = {**RUNS, **PACKED_RUNS}[name][0]
    settings = {
        "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "policy": POLICY,
        "trainer_arguments": {"eval_dataset": Dataset.from_list(DATA[data][:4])},
    }  # fmt: skip
    plain, _, _ = run(tmp_path, tokenizer, name, **settings)
    trainer, _, collator = run(tmp_path, tokenizer, name, "attach", **settings)
    # TRL's running count of trained tokens is logged with an evaluation, but does not belong to it.
    logged, expected = (numbers_logged(each, "eval_") for each in (trainer, plain))
    assert len(logged) > 1
    assert logged == expected
    assert collator.stats["changed"] > 0
    assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    batches = collator.stats["batches"]
    predicted = trainer.predict(trainer.eval_dataset)
    assert predicted.metrics["test_loss"] == plain.predict(plain.eval_dataset).metrics["test_loss"]
    assert collator.stats["batches"] == batches


def sft_with_lora(folder, tokenizer, name, *, shared):
    data, settings, _ = {**RUNS, **PACKED_RUNS}[name]
    # Made first, because making a model seeds the generator that shuffles, too.
    copy = Prior(make_trainee())
    trainer, _ = make_trainer(
        folder, tokenizer, kind="SFTTrainer", train=Dataset.from_list(DATA[data]),
        trainer_arguments={"peft_config": lora(lora_dropout=0.1)}, learning_rate=1e-2,
        gradient_checkpointing=True, num_train_epochs=2, **settings,
    )  # fmt: skip
    prior = Prior.shared(trainer.model) if shared else copy
    collator = attach(trainer, prior, POLICY.replace(threshold=0.003))
    return trainer, Recorder(trainer.model.get_base_model()), prior, collator


@pytest.mark.parametrize("name", ["prompt-completion", "bfd", "padding-free"])
def test_a_shared_prior_edits_as_a_copy_of_the_base_does(tmp_path, tokenizer, name):
    given = []
    for shared in (True, False):
        trainer, recorder, prior, collator = sft_with_lora(tmp_path, tokenizer, name, shared=shared)
        with counted_passes(prior) as passes:
            trainer.train()
        assert len(passes) == collator.stats["batches"] > 0
        assert collator.stats["changed"] > 0
        given.append([one for one in recorder.given if one.labels is not None])
    assert given[0] == given[1]


def test_a_shared_prior_before_the_trainer_puts_peft_on(tmp_path, tokenizer):
    base = make_trainee()
    prior = Prior.shared(base, tokenizer=tokenizer)
    collator = ToEditCollator(prior, POLICY.replace(threshold=0.003))
    trainer, _ = make_trainer(
        tmp_path, tokenizer, kind="SFTTrainer", model=base, base_collator=collator,
        train=Dataset.from_list(DATA["prompt-completion"]), learning_rate=1e-1,
        trainer_arguments={"peft_config": lora()},
    )  # fmt: skip
    assert isinstance(trainer.model, PeftModel)
    trainer.train()
    assert collator.stats["changed"] > 0
    ids = torch.arange(10, 30).unsqueeze(0)
    scores = [
        edit_tokens(each, ids, return_logprob=True).logprob[:, 1:]
        for each in (prior, Prior(make_trainee()))
    ]
    assert torch.equal(*scores)
    with torch.no_grad():
        trained = trainer.model.eval()(input_ids=ids).logits
    assert not torch.allclose(trained, make_trainee()(input_ids=ids).logits, atol=1e-2)


def test_packing_refuses_a_collator_of_the_users(tmp_path, tokenizer):
    """TRL's own message; ours would come too late. `attach` is the way in."""
    with pytest.raises(ValueError, match="custom data collator is not supported"):
        run(tmp_path, tokenizer, "bfd", "collator")
