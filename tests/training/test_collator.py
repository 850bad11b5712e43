"""ToEditCollator around every base collator: what follows an edit, and what passes through."""

import copy
import operator
from itertools import chain, pairwise

import pytest
import torch
from conftest import make_llama, make_tokenizer
from trainees import AGGRESSIVE, documents, make_prior
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
)
from transformers.trainer_utils import RemoveColumnsCollator
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as TRLCollator

from toedit_collate import EditPolicy, Prior, ToEditBatch, ToEditCollator, edit_tokens

TEXTS = documents(5)
DROPPING = EditPolicy(threshold=0.6, exclude_original=True, drop_below=1e-4)
POLICIES = {"resample": AGGRESSIVE, "drop": DROPPING}
FLASH = {"return_flash_attn_kwargs": True}


def with_prompts(texts):
    return [{"input_ids": ids, "labels": [-100] * 3 + ids[3:]} for ids in texts]


def without_labels(texts):
    return [{"input_ids": ids} for ids in texts]


def packed(texts):
    """Rows of several documents, as TRL's packing makes them."""
    groups = [texts[:2], texts[2:]]
    return [
        {
            "input_ids": list(chain(*group)),
            "labels": list(chain(*(row["labels"] for row in with_prompts(group)))),
            "seq_lengths": [len(ids) for ids in group],
        }
        for group in groups
    ]


def left_padded(features):
    """A function of a user's: pads on the left, and adds things that are nobody's business."""
    width = max(len(row["input_ids"]) for row in features)

    def padded(name, padding):
        rows = [[padding] * (width - len(row[name])) + row[name] for row in features]
        return torch.tensor(rows)

    ones = [{"mask": [1] * len(row["input_ids"])} for row in features]
    mask = [[0] * (width - len(row["mask"])) + row["mask"] for row in ones]
    return {
        "names": [f"text {row['input_ids'][0]}" for row in features],
        "weight": torch.arange(len(features)) / 2,
        "labels": padded("labels", -100),
        "input_ids": padded("input_ids", 2),
        "attention_mask": torch.tensor(mask, dtype=torch.bool),
        "temperature": 0.7,
    }


def one_row_of_positions(features):
    batch = TRLCollator(2)(features)
    return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1]).unsqueeze(0)}


# name -> (base collator, from texts to features)
BASES = {
    "default": (None, without_labels),
    "default, with labels": (None, with_prompts),
    "default, lists": (None, list),
    "language modelling": (
        lambda tokenizer: DataCollatorForLanguageModeling(tokenizer, mlm=False),
        without_labels,
    ),
    "multiple of 8": (
        lambda tokenizer: DataCollatorForLanguageModeling(
            tokenizer, mlm=False, pad_to_multiple_of=8
        ),
        without_labels,
    ),
    "seq2seq": (lambda tokenizer: DataCollatorForSeq2Seq(tokenizer), with_prompts),
    "flattening": (lambda tokenizer: DataCollatorWithFlattening(), with_prompts),
    "flattening, no labels": (lambda tokenizer: DataCollatorWithFlattening(), without_labels),
    "flattening, flash": (lambda tokenizer: DataCollatorWithFlattening(**FLASH), with_prompts),
    "flattening, seq_idx": (
        lambda tokenizer: DataCollatorWithFlattening(**FLASH, return_seq_idx=True),
        with_prompts,
    ),
    "flattening, from 2": (
        lambda tokenizer: DataCollatorWithFlattening(position_ids_start=2),
        with_prompts,
    ),
    "flattening, flash only": (
        lambda tokenizer: DataCollatorWithFlattening(**FLASH, return_position_ids=False),
        with_prompts,
    ),
    "flattening, seq_idx only": (
        lambda tokenizer: DataCollatorWithFlattening(
            return_position_ids=False, return_seq_idx=True
        ),
        with_prompts,
    ),
    "TRL": (lambda tokenizer: TRLCollator(2), with_prompts),
    "TRL, positions": (lambda tokenizer: TRLCollator(2, return_position_ids=True), with_prompts),
    "TRL, padding-free": (lambda tokenizer: TRLCollator(2, padding_free=True), with_prompts),
    "TRL, padding-free, no labels": (
        lambda tokenizer: TRLCollator(2, padding_free=True),
        without_labels,
    ),
    "TRL, packed": (lambda tokenizer: TRLCollator(2, padding_free=True), packed),
    "TRL, packed, multiple of 16": (
        lambda tokenizer: TRLCollator(2, padding_free=True, pad_to_multiple_of=16),
        packed,
    ),
    "one row of positions": (lambda tokenizer: one_row_of_positions, with_prompts),
    "a function": (lambda tokenizer: left_padded, with_prompts),
}


def starts_of(batch):
    """Where documents begin in a row without padding, by each key that says so."""
    ids, starts = batch["input_ids"], {}
    assert len(ids) == 1
    if "position_ids" in batch:
        positions = batch["position_ids"][0]
        first = torch.ones_like(positions, dtype=torch.bool)
        first[1:] = positions[1:] != positions[:-1] + 1
        starts["position_ids"] = first.nonzero().flatten().tolist()
    for side in "qk":
        borders = batch.get(f"cu_seq_lens_{side}")
        if borders is not None:
            assert borders.dtype == torch.int32
            assert int(borders[-1]) == ids.numel()
            assert batch[f"max_length_{side}"] == int(borders.diff().max())
            starts[f"cu_seq_lens_{side}"] = borders[:-1].tolist()
    if "seq_idx" in batch:
        numbers = batch["seq_idx"][0]
        assert int(numbers[0]) == 0
        assert set(numbers.diff().tolist()) <= {0, 1}
        starts["seq_idx"] = [0, *(numbers.diff().nonzero().flatten() + 1).tolist()]
    assert starts
    assert len({tuple(each) for each in starts.values()}) == 1
    return next(iter(starts.values()))


def parse(batch):
    """Documents and their labels, however the batch holds them; documents of padding left out."""
    ids, labels = batch["input_ids"], batch["labels"]
    assert ids.shape == labels.shape
    if "attention_mask" in batch:
        mask = batch["attention_mask"].bool()
        assert mask.shape == ids.shape
        assert (labels[~mask] == -100).all()
        pieces = [(ids[b][mask[b]], labels[b][mask[b]]) for b in range(len(ids))]
    else:
        borders = [*starts_of(batch), ids.numel()]
        spans = [slice(a, b) for a, b in pairwise(borders)]
        pieces = [(ids[0, span], labels[0, span]) for span in spans]
    return [(i.tolist(), y.tolist()) for i, y in pieces if i.tolist() != [2] * len(i)]


def edited_alone(prior, policy, features):
    """Each document edited by itself, without padding or neighbours."""
    result = []
    for row in features:
        row = row if isinstance(row, dict) else {"input_ids": row}
        ids = torch.tensor([row["input_ids"]])
        labels = torch.tensor([row.get("labels", row["input_ids"])])
        edit = edit_tokens(prior, ids, labels=labels, policy=policy)
        result.append((edit.input_ids[0].tolist(), edit.labels[0].tolist()))
    return result


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def prior(tokenizer):
    return make_prior(tokenizer)


def make_collator(name, prior, policy, tokenizer):
    make, features = BASES[name]
    try:
        base = None if make is None else make(tokenizer)
    except TypeError as error:  # position_ids_start, return_position_ids
        if "unexpected keyword argument" not in str(error):
            raise
        pytest.skip(f"not in this version: {error}")
    return ToEditCollator(prior, policy, base_collator=base, tokenizer=tokenizer), features


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", BASES)
def test_a_batch_is_its_documents_edited_alone(prior, tokenizer, name, policy):
    collator, features = make_collator(name, prior, POLICIES[policy], tokenizer)
    rows = features(TEXTS)
    plain = collator.base_collator(copy.deepcopy(rows))
    batch = collator(rows)
    assert isinstance(batch, ToEditBatch)
    found = parse(batch)
    alone = with_prompts(TEXTS) if features is packed else features(TEXTS)
    expected = edited_alone(prior, POLICIES[policy], alone)
    if "attention_mask" not in batch:
        # Without padding, the first token of each document has no label.
        expected = [(ids, [-100, *labels[1:]]) for ids, labels in expected]
    assert found == expected
    assert set(batch) == set(plain)
    assert [type(batch[key]) for key in plain] == [type(plain[key]) for key in plain]
    tensors = [key for key in plain if isinstance(plain[key], torch.Tensor)]
    assert [batch[key].dtype for key in tensors] == [plain[key].dtype for key in tensors]

    stats = collator.stats
    assert stats["changed"] > 0
    assert (stats["dropped"] > 0) is (policy == "drop")
    assert batch["input_ids"].shape[1] <= plain["input_ids"].shape[1]
    kept = sum(len(ids) for ids, _ in found)
    assert kept == sum(len(ids) for ids in TEXTS) - stats["dropped"]


@pytest.mark.parametrize("name", BASES)
def test_what_does_not_speak_of_tokens_is_as_it_came(prior, tokenizer, name):
    collator, features = make_collator(name, prior, AGGRESSIVE, tokenizer)
    plain = collator.base_collator(features(TEXTS))
    batch = collator(features(TEXTS))
    for key in set(plain) - {"input_ids", "labels"}:
        equal = torch.equal if isinstance(plain[key], torch.Tensor) else operator.eq
        assert equal(batch[key], plain[key])


@pytest.mark.parametrize("name", ["flattening", "TRL, positions", "one row of positions"])
def test_positions_count_up_after_tokens_were_dropped(prior, tokenizer, name):
    collator, features = make_collator(name, prior, DROPPING, tokenizer)
    batch = collator(features(TEXTS))
    expected = [list(range(len(ids))) for ids, _ in parse(batch)]
    if "attention_mask" in batch:
        mask = batch["attention_mask"].bool()
        found = [row[here].tolist() for row, here in zip(batch["position_ids"], mask, strict=True)]
        assert found == expected
    else:
        assert batch["position_ids"][0].tolist() == list(chain(*expected))


def test_unknown_keys_pass_through(prior, tokenizer):
    for policy in POLICIES.values():
        collator, features = make_collator("a function", prior, policy, tokenizer)
        batch = collator(features(TEXTS))
        assert batch["names"] == [f"text {ids[0]}" for ids in TEXTS]
        assert batch["weight"].tolist() == [0, 0.5, 1, 1.5, 2]
        assert batch["temperature"] == 0.7
        assert collator.stats["changed"] > 0


class PerToken:
    """Adds a key with a value for each token: its own id, where it stood at first."""

    def __init__(self, name):
        self.name = name

    def __call__(self, features):
        batch = left_padded(features)
        batch[self.name] = torch.arange(batch["input_ids"].shape[1]).repeat(len(features), 1)
        return batch


@pytest.mark.parametrize("name", ["completion_mask", "assistant_masks", "token_type_ids"])
def test_known_values_of_tokens_follow_them(prior, tokenizer, name):
    collator = ToEditCollator(prior, DROPPING, base_collator=PerToken(name), tokenizer=tokenizer)
    plain = left_padded(with_prompts(TEXTS))
    batch = collator(with_prompts(TEXTS)).to("cpu")
    assert collator.stats["dropped"] > 0
    for b, places in enumerate(batch[name]):
        mask = batch["attention_mask"][b]
        places = places[mask].tolist()
        assert places == sorted(set(places))
        before, after = plain["input_ids"][b][places], batch["input_ids"][b][mask]
        assert int((before == after).sum()) >= 3  # the prompt is among them
        assert batch[name][b][~mask].tolist() == [0] * int((~mask).sum())


def test_unknown_values_of_tokens_are_refused_when_tokens_go(prior, tokenizer):
    base = PerToken("weights")
    collator = ToEditCollator(prior, DROPPING, base_collator=base, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"'weights', which looks like.*drop_below=None"):
        collator(with_prompts(TEXTS))["input_ids"]
    collator = ToEditCollator(prior, AGGRESSIVE, base_collator=base, tokenizer=tokenizer)
    assert collator(with_prompts(TEXTS))["weights"][0].tolist()[:3] == [0, 1, 2]


# Collators whose rows have a length that is a multiple of 8.
WIDE = {
    "language modelling": lambda tokenizer: DataCollatorForLanguageModeling(
        tokenizer, mlm=False, pad_to_multiple_of=8
    ),
    "seq2seq": lambda tokenizer: DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8),
    "padding": lambda tokenizer: DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8),
    "to a length": lambda tokenizer: DataCollatorForSeq2Seq(
        tokenizer, padding="max_length", max_length=24
    ),
    "TRL": lambda tokenizer: TRLCollator(2, pad_to_multiple_of=8),
    "TRL, padding-free": lambda tokenizer: TRLCollator(2, padding_free=True, pad_to_multiple_of=8),
    "inside another": lambda tokenizer: RemoveColumnsCollator(
        TRLCollator(2, pad_to_multiple_of=8), ["input_ids", "labels"]
    ),
}


class TestWidths:
    """Rows that lost tokens are padded as the base collator pads them."""

    @pytest.mark.parametrize("side", ["right", "left"])
    @pytest.mark.parametrize("name", WIDE)
    def test_pad_to_multiple_of(self, prior, name, side):
        tokenizer = make_tokenizer()
        tokenizer.padding_side = side
        base = WIDE[name](tokenizer)
        features = without_labels if name in ("padding", "language modelling") else with_prompts
        collator = ToEditCollator(prior, DROPPING, base_collator=base, tokenizer=tokenizer)
        plain = base(copy.deepcopy(features(TEXTS)))
        batch = collator(features(TEXTS))
        assert batch["input_ids"].shape[1] % 8 == 0
        assert collator.stats["dropped"] > 8
        for key in set(plain) & {"labels", "attention_mask", "position_ids", "seq_idx"}:
            assert batch[key].shape == batch["input_ids"].shape
        ids = batch["input_ids"]
        if "attention_mask" in batch:
            found = [
                row[m.bool()].tolist() for row, m in zip(ids, batch["attention_mask"], strict=True)
            ]
            on_the_left = plain["attention_mask"][:, 0].min() == 0
            assert (batch["attention_mask"][:, 0].min() == 0) == on_the_left
            assert (ids[batch["attention_mask"] == 0] == 2).all()
        else:
            found = [i for i, _ in parse(batch)]
        assert found == [i for i, _ in edited_alone(prior, DROPPING, features(TEXTS))]

    def test_rows_keep_a_fixed_length(self, prior, tokenizer):
        base = WIDE["to a length"](tokenizer)
        collator = ToEditCollator(prior, DROPPING, base_collator=base, tokenizer=tokenizer)
        assert collator(with_prompts(TEXTS))["input_ids"].shape == (5, 24)


class AddsLengths:
    """Adds keys to what TRL's collator makes of all rows in one."""

    def __init__(self, **keys):
        self.keys = keys

    def __call__(self, features):
        return {**TRLCollator(2, padding_free=True)(features), **self.keys}


LENGTHS = [len(text) for text in TEXTS]


class TestKeysThatSpeakOfLengths:
    @pytest.mark.parametrize(
        "keys",
        [
            {"num_items_in_batch": 40},
            {"cu_seqlens": torch.tensor([0, *LENGTHS]).cumsum(0)},
            {"max_seqlen": 12},
            {"sequence_lengths": [[8, 9]]},
            {"attention_mask_in_length": torch.tensor([[3, 4, 0]])},
            {"length": torch.tensor([3])},
            {"packed_seq_lengths": LENGTHS},
        ],
    )
    def test_others_are_refused_when_tokens_go(self, prior, tokenizer, keys):
        (name,) = keys
        base = AddsLengths(**keys)
        collator = ToEditCollator(prior, DROPPING, base_collator=base, tokenizer=tokenizer)
        with pytest.raises(ValueError, match=rf"'{name}'.*remove the key.*drop_below=None"):
            collator(with_prompts(TEXTS))["input_ids"]
        collator = ToEditCollator(prior, AGGRESSIVE, base_collator=base, tokenizer=tokenizer)
        assert collator(with_prompts(TEXTS))[name] is keys[name]

    def test_names_that_only_sound_so_pass(self, prior, tokenizer):
        base = AddsLengths(length_penalty=0.5, lengthy=True)
        collator = ToEditCollator(prior, DROPPING, base_collator=base, tokenizer=tokenizer)
        batch = collator(with_prompts(TEXTS))
        assert (batch["length_penalty"], batch["lengthy"]) == (0.5, True)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"prior": make_llama}, r"prior must be a Prior, got function"),
            ({"policy": 0.99}, r"policy must be an EditPolicy, got float"),
            ({"base_collator": "default"}, r"base_collator must be a function.*got str"),
        ],
    )
    def test_arguments(self, prior, arguments, message):
        with pytest.raises(TypeError, match=message):
            ToEditCollator(**{"prior": prior, **arguments})

    def test_editing_twice(self, prior):
        with pytest.raises(TypeError, match="is a ToEditCollator already"):
            ToEditCollator(prior, base_collator=ToEditCollator(prior))

    def test_no_tokenizer(self):
        collator = ToEditCollator(Prior(make_llama()))
        with pytest.raises(ValueError, match=r"no tokenizer to pad with; pass base_collator="):
            collator(TEXTS)

    def test_no_padding_token(self, prior):
        tokenizer = make_tokenizer()
        tokenizer.pad_token = None
        collator = ToEditCollator(prior, tokenizer=tokenizer)
        with pytest.raises(ValueError, match=r"no padding token; set tokenizer\.pad_token"):
            collator(TEXTS)
        assert collator([TEXTS[0], TEXTS[0]])["input_ids"].shape == (2, len(TEXTS[0]))

    def test_packed_rows(self, prior):
        with pytest.raises(ValueError, match=r"rows are packed.*attach\(trainer"):
            ToEditCollator(prior)(packed(TEXTS))

    def test_no_features(self, prior):
        with pytest.raises(ValueError, match="the batch is empty"):
            ToEditCollator(prior)([])

    @pytest.mark.parametrize(
        ("made", "error", "message"),
        [
            ([1], TypeError, "must return a dict of tensors, got list"),
            ({"labels": 1}, ValueError, r"returned \['labels'\] without input_ids"),
            (
                {"input_ids": torch.ones(1, 2).long(), "shift_labels": 1},
                ValueError,
                "has shift_labels",
            ),
            (
                {"input_ids": torch.ones(1, 2).long(), "inputs_embeds": 1},
                ValueError,
                "has inputs_embeds",
            ),
            ({"input_ids": [[1, 2]]}, TypeError, r"must be a torch tensor.*return_tensors='pt'"),
        ],
    )
    def test_batches(self, prior, made, error, message):
        collator = ToEditCollator(prior, base_collator=lambda features: made)
        with pytest.raises(error, match=message):
            collator([1])["input_ids"]

    def test_another_tokenizer(self, prior):
        other = make_tokenizer()
        other.add_tokens(["<a>", "<b>"])
        changed = copy.deepcopy(prior.tokenizer)
        changed.add_tokens(["<b>", "<a>"])
        with pytest.raises(ValueError, match=r"id \d+ is '<a>' to the trainee and '<b>' to the"):
            ToEditCollator(Prior(make_llama(), changed), tokenizer=other)

    def test_reserved_tokens_may_have_other_names(self):
        """Llama 3.2 uses ids that Llama 3 keeps in reserve, and numbers the others anew."""
        names = {
            "trainee": ["<|reserved_special_token_2|>", "<|reserved_special_token_3|>", "<a>"],
            "prior": ["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<a>"],
            "other": ["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<b>"],
        }
        tokenizers = {}
        for who, added in names.items():
            tokenizers[who] = make_tokenizer()
            tokenizers[who].add_special_tokens({"additional_special_tokens": added})
        trainee = tokenizers["trainee"]
        ToEditCollator(Prior(make_llama(), tokenizers["prior"]), tokenizer=trainee)
        with pytest.raises(ValueError, match=r"is '<a>' to the trainee and '<b>' to the prior"):
            ToEditCollator(Prior(make_llama(), tokenizers["other"]), tokenizer=trainee)
