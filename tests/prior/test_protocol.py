"""What editing asks of a prior, and nothing more: priors of other makes can edit, too."""

import pytest
import torch
from conftest import make_llama
from trainees import AGGRESSIVE, dataset, documents, make_prior, make_trainer

from toedit_collate import EditPolicy, Prior, ToEditCollator, edit_tokens
from toedit_collate.config.card import add_to_card
from toedit_collate.prior.protocol import EditingPrior, is_prior
from toedit_collate.stores.cache import CachedPrior, DecisionCache


class Narrow:
    """A prior with exactly what the protocol lists: each name of it, from a `Prior`."""

    def __init__(self, prior):
        for name in _members():
            if not isinstance(getattr(type(prior), name, None), property):
                setattr(self, name, getattr(prior, name))
        self._prior = prior

    device = property(lambda self: self._prior.device)
    vocab_size = property(lambda self: self._prior.vocab_size)
    max_length = property(lambda self: self._prior.max_length)
    pad_id = property(lambda self: self._prior.pad_id)
    fingerprint = property(lambda self: self._prior.fingerprint)
    description = property(lambda self: self._prior.description)
    is_sharded = property(lambda self: self._prior.is_sharded)


def _members():
    return {
        n for n in (*EditingPrior.__annotations__, *vars(EditingPrior)) if not n.startswith("_")
    }


def test_no_more_than_the_protocol_is_asked_of_a_prior(tmp_path, tokenizer):
    """A run with a journal and a cache, its prior's weights not swapped."""
    found = {}
    for name in ("whole", "narrow"):
        prior = make_prior(tokenizer) if name == "whole" else Narrow(make_prior(tokenizer))
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
            for p in (Narrow(prior), prior)
        )
        assert torch.equal(ours.input_ids, theirs.input_ids)


def test_what_is_a_prior_is_told_without_asking_it():
    class Costly(Narrow):
        fingerprint = property(lambda self: pytest.fail("read for a check"))

    assert is_prior(Costly(Prior(make_llama())))
    assert is_prior(CachedPrior.__new__(CachedPrior)) is False  # not made yet: no tokenizer
    assert not is_prior(make_llama())
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
        add_to_card(trainer, "mine", policy)
        trainer.train()
        collator.flush()
        trainer.create_model_card()
        card = (tmp_path / name / "README.md").read_text()
        expected = {"filled": "- Prior: `LlamaForCausalLM`", "alone": f"`{prior.fingerprint}`, fro"}
        assert expected[name] in card
