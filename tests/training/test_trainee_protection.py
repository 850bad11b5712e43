"""The trainee's template and special tokens are protected, whatever tokenizer the prior has."""

import functools

import pytest
import torch
from chat_templates import STYLES
from conftest import make_llama, make_tokenizer
from datasets import Dataset
from trainees import QUIET
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from toedit_collate import (
    EditPolicy,
    Prior,
    ToEditCallback,
    ToEditCollator,
    attach,
    edit_tokens,
)
from toedit_collate.stores.cache import DecisionCache, Identity

EVERY = EditPolicy(region="all", exclude_original=True, scope="all")
TALK = [
    {"role": "user", "content": "the quick fox"},
    {"role": "assistant", "content": "jumps over"},
    {"role": "tool", "content": "the lazy dog"},
    {"role": "assistant", "content": "and runs"},
]


def tokenizer_of(style, *special):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = STYLES.get(style)
    if special:  # one that the prior's tokenizer takes for text
        tokenizer.add_special_tokens({"additional_special_tokens": [*special]})
    return tokenizer


PRIORS = {
    "none": lambda: None,
    "without template": lambda: tokenizer_of(None),
    "another template": lambda: tokenizer_of("names"),
    "the trainee's": lambda: tokenizer_of("hashes"),
}


def ids_of(tokenizer):
    return tokenizer.apply_chat_template(TALK, return_dict=True)["input_ids"]


def headers(tokenizer, ids):
    return tokenizer.decode(ids).count("### ")


class Seen(list):
    """The texts of each batch before and after its edit."""

    def __call__(self, batch, result):
        self.append((batch["input_ids"].tolist(), result.input_ids.tolist()))


def run_collator(tmp_path, prior, trainees, seen, **settings):
    collator = ToEditCollator(prior, EVERY, on_edit=seen, **settings)
    _ = collator([{"input_ids": ids_of(trainees)}])["input_ids"]


def run_base_collator(tmp_path, prior, tokenizer, seen):
    base = DataCollatorForSeq2Seq(tokenizer)
    run_collator(tmp_path, prior, tokenizer, seen, base_collator=base)


def run_trainer(tmp_path, prior, tokenizer, seen, *, kind=Trainer, by_callback=False):
    if kind is SFTTrainer:
        arguments = SFTConfig(str(tmp_path), **QUIET, max_length=None)
        rows, collator = Dataset.from_list([{"messages": TALK}] * 2), None
    else:
        arguments = TrainingArguments(str(tmp_path), **QUIET)
        ids = ids_of(tokenizer)
        rows = Dataset.from_dict({"input_ids": [ids] * 2, "labels": [ids] * 2})
        collator = DataCollatorForSeq2Seq(tokenizer)
    trainer = kind(
        model=make_llama(1), args=arguments, train_dataset=rows, data_collator=collator,
        processing_class=tokenizer,
    )  # fmt: skip
    if by_callback:
        trainer.add_callback(ToEditCallback(ToEditCollator(prior, EVERY, on_edit=seen)))
    else:
        attach(trainer, prior, EVERY, on_edit=seen)
    trainer.train()


WAYS = {
    "collator": lambda path, prior, t, seen: run_collator(path, prior, t, seen, tokenizer=t),
    "base collator": run_base_collator,
    "Trainer": run_trainer,
    "SFTTrainer": lambda *args: run_trainer(*args, kind=SFTTrainer),
    "callback": lambda *args: run_trainer(*args, kind=SFTTrainer, by_callback=True),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("priors", PRIORS)
def test_the_trainees_template_stays(tmp_path, priors, way):
    tokenizer, seen = tokenizer_of("hashes"), Seen()
    WAYS[way](tmp_path, Prior(make_llama(), PRIORS[priors]()), tokenizer, seen)
    assert seen
    for before, after in seen:
        for old, new in zip(before, after, strict=True):
            assert headers(tokenizer, new) == headers(tokenizer, old) == 4
            for role in ("user", "assistant", "tool"):
                assert f"### {role}:\n" in tokenizer.decode(new)
            assert sum(a != b for a, b in zip(old, new, strict=True)) > 10


def pad(rows, by):
    batch = by.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
    return {**batch, "labels": batch["input_ids"].clone()}


class Pads:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __call__(self, rows):
        return pad(rows, tokenizer_of("hashes"))

    collate = __call__


HOLDER = Pads()


def pad_by_global(rows):
    return pad(rows, HOLDER.tokenizer)


def by_global(tokenizer):
    HOLDER.tokenizer = tokenizer
    return pad_by_global


COLLATORS = {
    "argument": lambda t: functools.partial(pad, by=t),
    "closure": lambda t: lambda rows: pad(rows, t),
    "global": by_global,
    "attribute": lambda t: Pads(tok=t),
    "processor": lambda t: Pads(processor=Pads(tokenizer=t)),
    "method": lambda t: Pads(tok=t).collate,
    "inside another": lambda t: Pads(inner=functools.partial(pad, by=t)),
}


@pytest.mark.parametrize("name", COLLATORS)
def test_the_template_of_a_tokenizer_that_the_collator_hides_stays(name):
    """The prior has its own tokenizer, and nobody names the trainee's."""
    tokenizer, seen = tokenizer_of("hashes"), Seen()
    prior = Prior(make_llama(), tokenizer_of(None))
    run_collator(None, prior, tokenizer, seen, base_collator=COLLATORS[name](tokenizer))
    [(before, after)] = seen
    assert headers(tokenizer, after[0]) == headers(tokenizer, before[0]) == 4


def test_special_tokens_that_the_trainee_alone_knows():
    """They are added to its tokenizer; to the prior's, their ids are padding, or reserved."""
    base, tokenizer = tokenizer_of(None), tokenizer_of(None, "<|tool|>")
    new = tokenizer.convert_tokens_to_ids("<|tool|>")
    ids = [5, 40, 41, new, 42, new, 43]
    prior = Prior(make_llama(), base)
    after = ToEditCollator(prior, EVERY, tokenizer=tokenizer)([{"input_ids": ids}])
    assert [i for i, t in enumerate(after["input_ids"][0].tolist()) if t == new] == [3, 5]
    assert new not in prior.special_ids


def test_a_prior_that_edits_for_two_trainees_edits_for_each_as_for_it_alone():
    prior = Prior(make_llama(), tokenizer_of(None))
    trainees = [tokenizer_of("hashes"), tokenizer_of("names")]
    ids = torch.tensor([ids_of(trainees[0])])

    def edit(number):
        collator = ToEditCollator(prior, EVERY, tokenizer=trainees[number])
        return collator([{"input_ids": ids[0].tolist()}])["input_ids"].tolist()

    bare = edit_tokens(prior, ids, policy=EVERY).input_ids.tolist()
    first = edit(0)
    assert first != bare
    assert edit(1) != first
    assert edit(0) == first
    assert edit_tokens(prior, ids, policy=EVERY).input_ids.tolist() == bare


def test_a_cache_knows_what_was_protected():
    """A document whose headers may be edited is another one than where they may not."""
    prior, cache = Prior(make_llama(), tokenizer_of(None)), DecisionCache()
    tokenizer, policy = tokenizer_of("hashes"), EVERY.replace(sampler="top_k")
    ids = ids_of(tokenizer)
    edits = []
    for cached in (None, cache, cache):
        collator = ToEditCollator(prior, policy, tokenizer=tokenizer, cache=cached)
        edits.append(collator([{"input_ids": ids}])["input_ids"].tolist())
    assert edits[0] == edits[1] == edits[2]
    assert cache.num_documents == 1
    edit_tokens(prior, torch.tensor([ids]), policy=policy, cache=cache)
    assert cache.num_documents == 2
    with prior.protecting(collator._editor._protection):
        identity = Identity.of(prior, policy)
    assert "### \ue000:\n" in identity.template_patterns
