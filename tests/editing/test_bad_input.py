"""Bad input gets an error that names the argument, the value seen and the fix."""

import pytest
import torch
from conftest import make_llama, make_tokenizer

from toedit_collate import (
    EditPolicy,
    Prior,
    ToEditCallback,
    ToEditCollator,
    attach,
    edit_tokens,
)

IDS = torch.full((2, 9), 7)
ONES = torch.ones_like(IDS)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("epoch", -1, ValueError, r"epoch must lie in \[0, 2\*\*32 - 1\), got -1"),
        ("epoch", 2**32 - 1, ValueError, r"epoch must lie in"),
        ("epoch", 1.5, TypeError, r"epoch must be a whole number, got 1\.5"),
        ("generation", -1, ValueError, r"generation must lie in"),
        ("generation", "x", TypeError, r"generation must be a whole number, got 'x'"),
        ("policy", {"threshold": 0.5}, TypeError, r"policy must be an EditPolicy, got dict"),
        ("cache", "folder", TypeError, r"cache must be a DecisionCache, got str"),
        ("prior", "gpt2", TypeError, r"prior must be a Prior, got str"),
    ],
)
def test_what_an_edit_is_made_with(prior, name, value, error, message):
    """Epoch -1 drew as redraw="never" does, and 2**32 as 0."""
    with pytest.raises(error, match=message):
        edit_tokens(**{"prior": prior, "input_ids": torch.tensor([[5, 6, 7]]), name: value})


def test_a_protect_function_may_write_to_what_it_is_given(prior):
    """It was the batch itself, so that training saw what the function made of it."""
    ids = torch.tensor([[5, 6, 7, 8]])
    policy = EditPolicy(region="all", exclude_original=True, protect=lambda i, _: i.zero_() == 0)
    result = edit_tokens(prior, ids, policy=policy)
    assert ids.tolist() == result.input_ids.tolist() == [[5, 6, 7, 8]]


def test_a_large_id_to_protect_takes_no_memory(prior):
    policy = EditPolicy(region="all", protected_token_ids=(6, 10**12))
    selected = edit_tokens(prior, torch.tensor([[5, 6, 7]]), policy=policy).selected
    assert selected.tolist() == [[False, False, True]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_ids": IDS.float()}, TypeError, r"input_ids.*int64.*float32.*long"),
        ({"input_ids": IDS[0]}, ValueError, r"input_ids.*\(B, T\).*\(9,\).*unsqueeze"),
        ({"input_ids": IDS[:0]}, ValueError, r"input_ids.*at least one token.*\(0, 9\)"),
        ({"input_ids": [[7, 7]]}, TypeError, r"input_ids must be a torch tensor, got list"),
        ({"input_ids": IDS + 313}, ValueError, r"input_ids.*\[0, 320\), got 320.*tokenizer"),
        ({"input_ids": -IDS}, ValueError, r"input_ids.*got -7"),
        ({"input_ids": torch.full((1, 300), 7)}, ValueError,
         r"document of 300 tokens.*256 positions.*max_length=256"),
        ({"input_ids": IDS, "labels": IDS[:, :4]}, ValueError,
         r"labels must have the shape of input_ids, \(2, 9\), got \(2, 4\).*not shifted"),
        ({"input_ids": IDS, "labels": IDS.float()}, TypeError, r"labels.*float32"),
        ({"input_ids": IDS, "labels": IDS + 1}, ValueError,
         r"labels must be -100 or equal to input_ids.*label 8 at token 7, row 0, column 0"),
        ({"input_ids": IDS, "attention_mask": ONES[:1]}, ValueError,
         r"attention_mask.*\(2, 9\).*got \(1, 9\)"),
        ({"input_ids": IDS, "attention_mask": ONES[:, None, None, :]}, ValueError,
         r"attention_mask.*\(2, 1, 9, 9\).*got \(2, 1, 1, 9\)"),
        ({"input_ids": IDS, "attention_mask": ONES * -3}, ValueError,
         r"attention_mask must be 0 at padding, and at tokens 1 or the number.*got -3"),
        ({"input_ids": IDS, "attention_mask": ONES * 0.5}, ValueError,
         r"attention_mask must be 0 at padding.*got 0.5"),
        ({"input_ids": IDS, "position_ids": ONES.unsqueeze(0).expand(3, 2, 9)}, ValueError,
         r"position_ids.*vision"),
    ],
    ids=lambda value: "" if not isinstance(value, str) else value[:30],
)  # fmt: skip
def test_edit_tokens_refuses(prior, arguments, error, message):
    with pytest.raises(error, match=message):
        edit_tokens(prior, **arguments)


def test_ids_past_the_vocabulary_may_stand_at_padding(prior):
    """A padding token that was added to the trainee's tokenizer only is never scored."""
    ids, mask = IDS.clone(), ONES.clone()
    ids[0, 5:], mask[0, 5:] = 100_000, 0
    result = edit_tokens(prior, ids, attention_mask=mask)
    assert torch.equal(result.input_ids[0, 5:], ids[0, 5:])


def test_labels_at_padding_may_be_anything(prior):
    ids, mask, labels = IDS.clone(), ONES.clone(), IDS.clone()
    mask[0, 5:], labels[0, 5:] = 0, 3
    result = edit_tokens(prior, ids, attention_mask=mask, labels=labels)
    assert torch.equal(result.labels, labels)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_prior_that_returns_nan(value):
    model = make_llama()
    with torch.no_grad():
        model.model.norm.weight[3] = 1.0
    prior = Prior(model)
    with torch.no_grad():
        model.model.norm.weight[3] = value
    with pytest.raises(ValueError, match=r"prior returned NaN or infinity.*bfloat16"):
        edit_tokens(prior, IDS)


class TestConstructors:
    @pytest.mark.parametrize("tokenizer", [5, "gpt2", object(), make_tokenizer()._tokenizer])
    def test_a_tokenizer_that_is_none(self, tokenizer):
        with pytest.raises(TypeError, match=r"tokenizer must be a tokenizer of transformers, got"):
            Prior(make_llama(), tokenizer)

    def test_a_class_and_a_model_without_weights(self):
        model = make_llama()
        with pytest.raises(TypeError, match=r"got type; load one with"):
            Prior(type(model))
        with pytest.raises(ValueError, match=r"without a plain weight .*on a device"):
            Prior(model.to("meta"))

    def test_prior(self):
        with pytest.raises(ValueError, match=r"tokenizer has 312 tokens.*vocabulary has only 100"):
            Prior(make_llama(vocab_size=100), make_tokenizer())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"prior": None}, r"prior must be a Prior, got NoneType.*Prior\(model, tokenizer\)"),
            ({"policy": 0.99}, r"policy must be an EditPolicy, got float"),
            ({"base_collator": 3}, r"base_collator must be a function.*got int"),
        ],
    )
    def test_collator(self, prior, tokenizer, change, message):
        arguments = {"prior": prior, "tokenizer": tokenizer, **change}
        with pytest.raises(TypeError, match=message):
            ToEditCollator(**arguments)

    def test_collator_around_a_collator(self, tokenizer):
        prior = Prior(make_llama(), tokenizer)
        with pytest.raises(TypeError, match="already; edit a batch once"):
            ToEditCollator(prior, base_collator=ToEditCollator(prior))

    def test_collator_without_anything_to_pad_with(self):
        collator = ToEditCollator(Prior(make_llama()))  # a callback may bring a base, yet
        with pytest.raises(ValueError, match=r"no base_collator, and no tokenizer"):
            collator([{"input_ids": [7, 8]}, {"input_ids": [7]}])

    def test_callback(self, prior):
        with pytest.raises(TypeError, match=r"collator must be a ToEditCollator.*got Prior"):
            ToEditCallback(prior)

    def test_another_tokenizer(self, tokenizer):
        other = make_tokenizer()
        other.add_tokens(["one"])
        prior = Prior(make_llama(), other)
        ToEditCollator(prior, tokenizer=tokenizer)  # a token more does no harm
        swapped = make_tokenizer()
        swapped._tokenizer = _with_ids_exchanged(swapped)
        with pytest.raises(ValueError, match=r"tokenizer differs.*id 300 is .* to the trainee"):
            ToEditCollator(prior, tokenizer=swapped)


def _with_ids_exchanged(tokenizer):
    """The same tokenizer, but with the ids 300 and 301 the other way round."""
    import json

    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    by_id = {token_id: token for token, token_id in vocab.items()}
    vocab[by_id[300]], vocab[by_id[301]] = 301, 300
    return Tokenizer.from_str(json.dumps(state))


class TestBatches:
    def collator(self, prior, base):
        return ToEditCollator(prior, EditPolicy(), base_collator=base)

    @pytest.mark.parametrize("row", [{}, {"text": "a"}, {"input_ids": None}])
    def test_rows_that_are_not_tokenized(self, prior, tokenizer, row):
        collator = ToEditCollator(prior, tokenizer=tokenizer)
        with pytest.raises(ValueError, match=r"no list of input_ids; tokenize the dataset first"):
            collator([row])

    @pytest.mark.parametrize("trainer", [None, 5, object()])
    def test_what_is_no_trainer(self, prior, trainer):
        with pytest.raises(TypeError, match=r"trainer must be a Trainer or SFTTrainer, got"):
            attach(trainer, prior)

    def test_no_features(self, prior):
        with pytest.raises(ValueError, match="batch is empty: the collator got no features"):
            self.collator(prior, lambda f: {})([])

    def test_no_mapping(self, prior):
        with pytest.raises(TypeError, match="dict of tensors, got list"):
            self.collator(prior, lambda f: f)([1])

    def test_no_input_ids(self, prior):
        with pytest.raises(ValueError, match=r"\['pixel_values'\] without input_ids"):
            self.collator(prior, lambda f: {"pixel_values": IDS})([1])

    def test_numpy(self, prior):
        batch = self.collator(prior, lambda f: {"input_ids": IDS.numpy()})([1])
        with pytest.raises(TypeError, match=r"torch tensor, got ndarray.*return_tensors='pt'"):
            batch["input_ids"]

    def test_shifted_labels(self, prior):
        batch = self.collator(prior, lambda f: {"input_ids": IDS, "shift_labels": IDS})([1])
        with pytest.raises(ValueError, match="shift_labels"):
            batch["input_ids"]

    def test_default_without_a_padding_token(self, prior):
        tokenizer = make_tokenizer()
        tokenizer.pad_token = None
        collator = ToEditCollator(Prior(make_llama(), tokenizer))
        assert collator([{"input_ids": [7, 8]}, {"input_ids": [7, 9]}])["input_ids"].shape == (2, 2)
        with pytest.raises(ValueError, match=r"no padding token.*tokenizer\.pad_token ="):
            collator([{"input_ids": [7, 8]}, {"input_ids": [7]}])

    def test_default_with_packed_rows(self, prior, tokenizer):
        collator = ToEditCollator(Prior(make_llama(), tokenizer))
        with pytest.raises(ValueError, match=r"rows are packed.*attach\(trainer"):
            collator([{"input_ids": [7, 8], "seq_lengths": [1, 1]}])
