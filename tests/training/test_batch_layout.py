"""Every way in which a batch tells its documents gives the edit of each document alone."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainees import AGGRESSIVE, documents, make_prior

from toedit_collate import EditPolicy, ToEditCollator, edit_tokens
from toedit_collate.tokens.token_batch import TokenBatch

TEXTS = documents(5)
PRIOR = make_prior()
# Two rows of packed documents, padded on the right; the second has one document.
ROWS = [TEXTS[:3], TEXTS[3:4]]
LOWEST = torch.finfo(torch.float32).min


def laid_out(rows, value_of, padding, width=None):
    width = width or max(sum(map(len, row)) for row in rows)
    lines = [
        [value_of(n, i, t) for n, text in enumerate(row) for i, t in enumerate(text)]
        for row in rows
    ]
    return torch.tensor([line + [padding] * (width - len(line)) for line in lines])


def packed(rows=ROWS):
    return {
        "input_ids": laid_out(rows, lambda n, i, t: t, 2),
        "labels": laid_out(rows, lambda n, i, t: t if i > 1 else -100, -100),
    }


def numbers(rows=ROWS):
    return laid_out(rows, lambda n, i, t: n + 1, 0)


def positions(rows=ROWS):
    return laid_out(rows, lambda n, i, t: i, 0)


def may_look(numbers):
    """(B, T) -> (B, T, T), one pair of tokens at a time."""
    B, T = numbers.shape
    allowed = torch.zeros(B, T, T, dtype=torch.bool)
    for b in range(B):
        for i in range(T):
            for j in range(i + 1):
                allowed[b, i, j] = numbers[b, i] == numbers[b, j] != 0
    return allowed


BLOCKS = may_look(numbers()).unsqueeze(1)
LAYOUTS = {
    "positions": {"attention_mask": (numbers() > 0).long(), "position_ids": positions()},
    "numbers": {"attention_mask": numbers()},
    "numbers and positions": {"attention_mask": numbers(), "position_ids": positions()},
    "numbers and a count": {
        "attention_mask": numbers(),
        "position_ids": torch.arange(numbers().shape[1]).expand(numbers().shape),
    },
    "blocks": {"attention_mask": BLOCKS},
    "blocks and positions": {"attention_mask": BLOCKS, "position_ids": positions()},
    "blocks to add": {"attention_mask": torch.where(BLOCKS, 0.0, LOWEST)},
    "blocks to add, infinite": {"attention_mask": torch.where(BLOCKS, 0.0, -torch.inf)},
}


# By their borders or lengths, in rows that are full.
FULL = [TEXTS[:3]]
_LENGTHS = torch.tensor([len(text) for text in TEXTS[:3]])
_BORDERS = torch.tensor([0, *_LENGTHS.cumsum(0).tolist()])
OF_FULL_ROWS = {
    **{name: {name: _BORDERS} for name in ("cu_seq_lens_q", "cu_seqlens", "cu_seq_lens")},
    "borders, one twice": {"cu_seqlens": torch.cat([_BORDERS, _BORDERS[-1:]])},
    "lengths": {"packed_seq_lengths": _LENGTHS.int()},
    "lengths and a count": {
        "packed_seq_lengths": _LENGTHS.tolist(),
        "position_ids": torch.arange(int(_BORDERS[-1])).unsqueeze(0),
    },
    **{name: {name: numbers(FULL)} for name in ("seq_idx", "document_ids", "segment_ids")},
}


def edited_alone(policy, rows=ROWS):
    edited = []
    for text in (text for row in rows for text in row):
        labels = [[-100, -100, *text[2:]]]
        result = edit_tokens(
            PRIOR, torch.tensor([text]), labels=torch.tensor(labels), policy=policy
        )
        edited.append(result.input_ids[0].tolist())
    return edited


def documents_in(batch, rows=ROWS):
    """As they were packed; where tokens were dropped, `numbers` must tell."""
    found = []
    for ids, row in zip(batch["input_ids"], rows, strict=True):
        ends = torch.tensor([0, *map(len, row)]).cumsum(0).tolist()
        found += [ids[a:b].tolist() for a, b in pairwise(ends)]
    return found


def collate(batch, policy=AGGRESSIVE):
    return ToEditCollator(PRIOR, policy, base_collator=lambda _: dict(batch))([1])


@pytest.mark.parametrize("name", LAYOUTS)
def test_documents_are_edited_as_if_alone(name):
    given = {**packed(), **LAYOUTS[name]}
    batch = collate(given)
    assert documents_in(batch) == edited_alone(AGGRESSIVE) != documents_in(given)
    kept = batch["labels"] != -100
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
    for key in set(given) - {"input_ids", "labels"}:
        assert torch.equal(batch[key], given[key])


@pytest.mark.parametrize("name", OF_FULL_ROWS)
def test_documents_of_full_rows_are_edited_as_if_alone(name):
    given = {**packed(FULL), **OF_FULL_ROWS[name]}
    batch = collate(given)
    assert documents_in(batch, FULL) == edited_alone(AGGRESSIVE, FULL) != documents_in(given, FULL)


def test_lengths_of_all_but_the_padding():
    """Behind the last document: a row that was padded to a multiple, without a mask."""
    row = packed(FULL)
    ids = torch.nn.functional.pad(row["input_ids"], (0, 5), value=2)
    labels = torch.nn.functional.pad(row["labels"], (0, 5), value=-100)
    batch = collate({"input_ids": ids, "labels": labels, "packed_seq_lengths": _LENGTHS})
    assert documents_in(batch, FULL) == edited_alone(AGGRESSIVE, FULL)
    assert batch["input_ids"][0, -5:].tolist() == [2] * 5


def test_lengths_of_padded_rows():
    lengths = torch.tensor([len(text) for row in ROWS for text in row])
    mask = (numbers() > 0).long()
    batch = collate({**packed(), "attention_mask": mask, "packed_seq_lengths": lengths})
    assert documents_in(batch) == edited_alone(AGGRESSIVE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cu_seqlens": _BORDERS + 1}, "cu_seqlens does not fit"),
        ({"cu_seqlens": _BORDERS[1:]}, "cu_seqlens does not fit"),
        ({"packed_seq_lengths": _LENGTHS + 1}, "packed_seq_lengths does not fit"),
    ],
    ids=["too long", "too late", "lengths"],
)
def test_borders_of_something_else_are_refused(wrong, message):
    with pytest.raises(ValueError, match=rf"{message}.*give position_ids that restart at 0"):
        collate({**packed(FULL), **wrong})["input_ids"]


def test_numbers_follow_dropped_tokens():
    policy = EditPolicy(threshold=0.6, exclude_original=True, drop_below=1e-2)
    batch = collate({**packed(), "attention_mask": numbers()}, policy)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape[1] < packed()["input_ids"].shape[1]
    found = [
        row[marks == n].tolist()
        for row, marks in zip(ids, mask, strict=True)
        for n in range(1, int(marks.max()) + 1)
    ]
    assert found == edited_alone(policy)


@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
)
def test_all_masks_tell_the_same(lengths, before, after):
    row = torch.tensor(
        [0] * before + [n + 1 for n, length in enumerate(lengths) for _ in range(length)]
        + [0] * after
    ).unsqueeze(0)  # fmt: skip
    ids = torch.zeros_like(row)
    for mask in (row, may_look(row).unsqueeze(1)):
        documents = TokenBatch.collated({"input_ids": ids, "attention_mask": mask}).documents
        assert documents.lengths == lengths
        assert documents.index.tolist() == (row > 0).nonzero()[:, 1].tolist()


@pytest.mark.parametrize("name", ["completion_mask", "assistant_masks", "loss_mask"])
def test_a_mask_instead_of_labels_is_refused(name):
    given = {"input_ids": packed()["input_ids"], name: numbers()}
    with pytest.raises(ValueError, match=rf"{name} and no labels.*return labels"):
        collate(given)["input_ids"]


def sliding(blocks):
    blocks = blocks.clone()
    blocks[..., 3, 0] = False
    return blocks


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attention_mask": numbers() - 2}, r"must be 0 at padding"),
        ({"attention_mask": sliding(BLOCKS)}, r"nothing else.*position_ids that restart"),
        ({"attention_mask": ~BLOCKS}, r"sees its document up to itself and nothing else"),
        ({"attention_mask": BLOCKS[..., :-1]}, r"must have the shape of input_ids.*\(2, 1, "),
        ({"attention_mask": BLOCKS.expand(-1, 2, -1, -1)}, r"must have the shape.*\(2, 1, "),
    ],
)
def test_what_is_not_understood_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        collate({**packed(), **keys})["input_ids"]


def test_blocks_cant_lose_tokens():
    policy = EditPolicy(drop_below=1e-6)
    with pytest.raises(ValueError, match=r"drop_below.*an attention_mask of four dimensions"):
        collate({**packed(), "attention_mask": BLOCKS}, policy)["input_ids"]
