"""Editing asks a prior for the members of `BasePrior` only: any kind of prior can edit."""

import pytest
import torch
from conftest import make_llama
from trainees import AGGRESSIVE, dataset, documents, make_prior, make_trainer

from toedit_collate import EditPolicy, Prior, ToEditCollator, edit_tokens
from toedit_collate.config.card import add_to_card
from toedit_collate.prior.base import BasePrior
from toedit_collate.stores.cache import DecisionCache


def _narrow(prior):
    """A prior with the members of `BasePrior` and no others, each taken from `prior`."""
    members = {n for n in (*BasePrior.__annotations__, *vars(BasePrior)) if n[0] != "_"}

    def of_prior(name):
        return property(lambda self: getattr(prior, name), lambda self, v: setattr(prior, name, v))

    return type("Narrow", (BasePrior,), {name: of_prior(name) for name in members})()


def test_no_more_than_the_base_class_has_is_asked_of_a_prior(tmp_path, tokenizer):
    """A run with a journal and a cache, its prior's weights not swapped."""
    found = {}
    for name in ("whole", "narrow"):
        prior = make_prior(tokenizer) if name == "whole" else _narrow(make_prior(tokenizer))
        trainer, collator = make_trainer(
            tmp_path / name, tokenizer, way="both", prior=prior, cache=DecisionCache(),
            train=dataset(documents(6)),
        )  # fmt: skip
        trainer.train()
        assert collator.stats["changed"] > 0
        found[name] = {k: v for k, v in collator.stats.items() if "second" not in k}
    assert found["whole"] == found["narrow"]


@pytest.mark.parametrize("policy", [AGGRESSIVE, EditPolicy(threshold=0.5, temperature=1.5)])
def test_editing_asks_for_no_more(policy):
    prior = Prior(make_llama())
    ids = torch.tensor(documents(1, longest=40)).repeat(2, 1)
    for cache in (None, DecisionCache()):
        ours, theirs = (
            edit_tokens(p, ids, policy=policy, cache=cache, num_sampled=4)
            for p in (_narrow(prior), prior)
        )
        assert torch.equal(ours.input_ids, theirs.input_ids)


def test_what_is_no_prior_is_refused():
    with pytest.raises(TypeError, match=r"prior must be a Prior, got LlamaForCausalLM"):
        ToEditCollator(make_llama())


def test_a_run_from_a_cache_alone_writes_its_model_card(tmp_path, tokenizer):
    """It died there, after training: the card asked the prior for its model."""
    cache, policy, texts = DecisionCache(tmp_path / "cache"), AGGRESSIVE, dataset(documents(6))
    for name in ("filled", "alone"):
        prior = make_prior(tokenizer) if name == "filled" else cache.prior(policy)
        trainer, collator = make_trainer(
            tmp_path / name, tokenizer, kind="SFTTrainer", way="attach", prior=prior, cache=cache,
            policy=policy, train=texts,
        )  # fmt: skip
        add_to_card(trainer)
        trainer.train()
        collator.flush()
        trainer.create_model_card()
        card = (tmp_path / name / "README.md").read_text()
        expected = {"filled": "- Prior: `LlamaForCausalLM`", "alone": f"`{prior.fingerprint}`, fro"}
        assert expected[name] in card
