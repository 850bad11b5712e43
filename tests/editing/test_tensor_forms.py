"""Tensors of any strides and types: the edit of a plain batch, or an error that names the type."""

import pytest
import torch
from conftest import make_tokenizer
from trainees import AGGRESSIVE, documents, make_prior

from toedit_collate import EditPolicy, Journal, ToEditCollator, edit_tokens
from toedit_collate.tokens.documents import mask_of_pairs

PRIOR = make_prior()
IDS = torch.tensor([text[:8] for text in documents(2)])
MASK = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])
LABELS = IDS.masked_fill(MASK == 0, -100).masked_fill(torch.arange(8) < 2, -100)
POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 0, 1, 2, 3, 4]])
BATCH = {"input_ids": IDS, "attention_mask": MASK, "position_ids": POSITIONS, "labels": LABELS}


def transposed(tensor):
    return tensor.t().contiguous().t()


def sliced(tensor):
    wide = torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)
    return wide.reshape(tensor.shape[0], -1)[:, ::2]


def flipped(tensor):
    return tensor.flip(-1).contiguous().flip(-1)


def edit(policy=AGGRESSIVE, prior=PRIOR, **batch):
    return edit_tokens(prior, batch.pop("input_ids"), policy=policy, **batch)


@pytest.mark.parametrize("form", [transposed, sliced, flipped])
@pytest.mark.parametrize("names", [[name] for name in BATCH] + [list(BATCH)])
def test_strides(form, names):
    plain = edit(**BATCH)
    assert plain.changed.any()
    got = edit(**{**BATCH, **{name: form(BATCH[name]) for name in names}})
    for field in ("input_ids", "labels", "changed", "selected", "scored"):
        assert torch.equal(getattr(got, field), getattr(plain, field))


def test_rows_that_share_memory():
    """An expanded tensor, of stride 0: rows are edited alike, and nothing is written to it."""
    row = IDS[:1]
    shared = row.expand(3, -1)
    labels = LABELS[:1].expand(3, -1)
    got = edit(input_ids=shared, labels=labels)
    assert got.changed.any()
    assert torch.equal(got.input_ids, edit(input_ids=row, labels=labels[:1]).input_ids.expand(3, 8))
    assert torch.equal(shared, IDS[:1].expand(3, -1))
    dropping = EditPolicy(threshold=0.6, drop_below=0.1)
    result = edit(dropping, input_ids=shared)
    assert result.dropped.any()
    assert result.input_ids.shape[1] < 8


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("input_ids", torch.int32),
        ("labels", torch.int32),
        ("position_ids", torch.int32),
        *(("attention_mask", t) for t in (torch.bool, torch.uint8, torch.int8, torch.int32)),
        *(("attention_mask", t) for t in (torch.float16, torch.bfloat16, torch.float64)),
    ],
)
@pytest.mark.parametrize("policy", [AGGRESSIVE, EditPolicy(threshold=0.6, drop_below=0.1)])
def test_types(name, dtype, policy):
    plain = edit(policy, **BATCH)
    batch = {**BATCH, name: BATCH[name].to(dtype)}
    got = edit(policy, **batch)
    for field in ("input_ids", "labels", "attention_mask", "position_ids", "selected", "dropped"):
        assert torch.equal(getattr(got, field).long(), getattr(plain, field).long()), field
    collated = ToEditCollator(PRIOR, policy, base_collator=lambda _: dict(batch))([1])
    assert torch.equal(collated["input_ids"].long(), plain.input_ids)
    assert {key: collated[key].dtype for key in batch} == {k: v.dtype for k, v in batch.items()}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *(
            ("input_ids", IDS.to(t), r"input_ids must be int64 or int32, got torch\.\w+")
            for t in (torch.int16, torch.uint8, torch.bool, torch.float32)
        ),
        *(
            ("labels", LABELS.to(t), r"labels must be int64 or int32, got")
            for t in (torch.int16, torch.int8, torch.bool, torch.float32)
        ),
        *(
            ("position_ids", POSITIONS.to(t), r"position_ids must be int64 or int32, got")
            for t in (torch.bfloat16, torch.float32, torch.uint8)
        ),
        ("attention_mask", MASK * float("nan"), r"attention_mask must be 0 at padding"),
        ("attention_mask", MASK - 1.0, r"attention_mask must be 0 at padding"),
    ],
)
def test_types_that_are_refused(name, value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        edit(**{**BATCH, name: value})


class TestMasksOfPairs:
    """Masks of four dimensions, in every type that libraries write them in."""

    NUMBERS = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    SEEN = (NUMBERS.unsqueeze(1) == NUMBERS.unsqueeze(2)).tril() & (NUMBERS != 0).unsqueeze(-1)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_numbers_that_are_added(self, dtype):
        added = torch.zeros(self.SEEN.shape, dtype=dtype)
        added = added.masked_fill(~self.SEEN, torch.finfo(dtype).min).unsqueeze(1)
        assert torch.equal(mask_of_pairs(added, self.NUMBERS.shape), self.NUMBERS)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32])
    def test_one_where_it_may_look(self, dtype):
        seen = self.SEEN.to(dtype).unsqueeze(1)
        assert torch.equal(mask_of_pairs(seen, self.NUMBERS.shape), self.NUMBERS)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
    def test_true_where_it_is_hidden_is_refused(self, dtype):
        causal = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
        with pytest.raises(ValueError, match=r"up to itself and nothing else"):
            mask_of_pairs((~causal).to(dtype), torch.Size((1, 6)))

    def test_a_bias_is_refused(self):
        """ALiBi: the farther, the less; only a token itself gets 0."""
        distance = torch.arange(6).unsqueeze(1) - torch.arange(6)
        bias = torch.where(distance < 0, -torch.inf, -0.5 * distance.float())
        with pytest.raises(ValueError, match="up to itself and nothing else"):
            mask_of_pairs(bias[None, None], torch.Size((1, 6)))

    def test_rows_of_padding_only(self):
        seen = torch.stack([self.SEEN[0], torch.zeros(6, 6, dtype=torch.bool)])
        numbers = mask_of_pairs(seen.unsqueeze(1), self.NUMBERS.shape)
        assert numbers.tolist() == [[1, 1, 1, 2, 2, 0], [0] * 6]


class TestPaddingWithoutAMask:
    """A document gets the same edit in a batch of any width."""

    TEXTS = documents(3, seed=3)
    EOS, PAD = 1, 2
    POLICY = AGGRESSIVE

    def collator(self, pad, side="right", tokenizer=None, with_labels=True, **kwargs):
        def collate(rows):
            width = max(map(len, rows))
            ids, labels = [], []
            for row in rows:
                extra = [pad] * (width - len(row)), [-100] * (width - len(row))
                own = [-100, -100, *row[2:]]
                ids.append(row + extra[0] if side == "right" else extra[0] + row)
                labels.append(own + extra[1] if side == "right" else extra[1] + own)
            batch = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
            return batch if with_labels else {"input_ids": batch["input_ids"]}

        tokenizer = make_tokenizer() if tokenizer is None else tokenizer
        prior = make_prior(tokenizer)
        return ToEditCollator(prior, self.POLICY, base_collator=collate, **kwargs)

    def tokenizer(self, **special):
        tokenizer = make_tokenizer()
        for name, token in special.items():
            setattr(tokenizer, name, token)
        return tokenizer

    def edits(self, collator, text, pad, side="right"):
        """Of a document alone, and padded by 1, 5 and 40 tokens."""
        found = []
        for more in (0, 1, 5, 40):
            long = [40, *range(50, 50 + len(text) + more - 1)]
            row = collator([text, long])["input_ids"][0]
            found.append(row[: len(text)] if side == "right" else row[-len(text) :])
            rest = row[len(text) :] if side == "right" else row[: -len(text)]
            assert rest.tolist() == [pad] * more
        return [row.tolist() for row in found]

    @pytest.mark.parametrize("ends", ["with eos", "without"])
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_pad_token(self, side, ends):
        text = self.TEXTS[0] + [self.EOS] * (ends == "with eos")
        first, *others = self.edits(self.collator(self.PAD, side), text, self.PAD, side)
        assert first != text
        assert others == [first] * 3

    @pytest.mark.parametrize("pad_token", ["<|eos|>", None])
    @pytest.mark.parametrize("ends", ["with eos", "without"])
    def test_padded_with_eos(self, ends, pad_token):
        tokenizer = self.tokenizer(pad_token=pad_token)
        text = self.TEXTS[1] + [self.EOS] * (ends == "with eos")
        collator = self.collator(self.EOS, tokenizer=tokenizer)
        first, *others = self.edits(collator, text, self.EOS)
        assert first != text
        assert others == [first] * 3

    def test_as_with_a_mask(self):
        text = self.TEXTS[0]
        collator = self.collator(self.PAD)
        expected = edit_tokens(
            collator.prior, torch.tensor([text]), policy=self.POLICY,
            attention_mask=torch.ones(1, len(text)),
            labels=torch.tensor([[-100, -100, *text[2:]]]),
        ).input_ids[0]  # fmt: skip
        assert self.edits(collator, text, self.PAD)[2] == expected.tolist()
        assert collator.stats["tokens"] == sum(2 * len(text) + more for more in (0, 1, 5, 40))

    def test_without_labels(self):
        collator = self.collator(self.PAD, with_labels=False)
        first, *others = self.edits(collator, self.TEXTS[0], self.PAD)
        assert others == [first] * 3

    def test_edit_tokens(self):
        text, prior = self.TEXTS[0], make_prior(make_tokenizer())
        found = []
        for more in (0, 3):
            ids = torch.tensor([text + [self.PAD] * more])
            labels = torch.tensor([text + [-100] * more])
            result = edit_tokens(prior, ids, labels=labels, policy=self.POLICY)
            assert result.attention_mask is None
            found.append(result.input_ids[0, : len(text)].tolist())
        assert found[0] == found[1] != text

    def test_with_a_journal_and_removed_tokens(self, tmp_path):
        self.POLICY = EditPolicy(threshold=0.6, exclude_original=True, drop_below=0.05)
        text = self.TEXTS[2]
        collator = self.collator(self.PAD, journal=Journal(tmp_path / "journal"))
        rows = []
        for more in (0, 2, 9):
            row = collator([text, list(range(50, 50 + len(text) + more))])["input_ids"][0].tolist()
            while row[-1] == self.PAD:
                row.pop()
            rows.append(row)
        assert collator.stats["dropped"] > 0
        assert collator.stats["replayed"] >= 2 * len(text)
        assert rows[0] == rows[1] == rows[2] != text

    def test_on_the_left_with_a_token_that_begins_texts_is_refused(self):
        tokenizer = self.tokenizer(pad_token="<|bos|>")
        collator = self.collator(0, "left", tokenizer=tokenizer)
        with pytest.raises(ValueError, match=r"start with several tokens 0.*attention_mask"):
            collator(self.TEXTS)["input_ids"]

    def test_with_an_unknown_token_is_warned_about(self, caplog):
        collator = self.collator(7)
        for _ in range(2):
            collator([self.TEXTS[0][:5], self.TEXTS[1]]).to("cpu")
        (warned,) = caplog.records
        assert "end with several tokens 7 without a label" in warned.message

    def test_packed_rows_keep_their_last_eos(self):
        """With pad = eos, a document is the same at the end of a row as in the middle."""
        text = [*self.TEXTS[0], self.EOS]
        ids = torch.tensor([text + text])
        labels = torch.tensor([[*text[:-1], -100] * 2])
        positions = torch.tensor([[*range(len(text))] * 2])
        prior = make_prior(self.tokenizer(pad_token="<|eos|>"))
        result = edit_tokens(prior, ids, labels=labels, position_ids=positions, policy=self.POLICY)
        first, second = result.input_ids[0].split(len(text))
        assert first.tolist() == second.tolist() != text
