import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import batches

from toedit_collate.tokens.documents import find_documents, mask_of_pairs


@given(batches())
def test_documents_are_those_of_the_reference(batch):
    ids, mask, positions = batch
    T = ids.shape[1]
    expected = reference.documents_of(ids, mask, positions)
    documents = find_documents(ids, mask, positions)
    assert documents.lengths == [len(document) for document in expected]
    assert documents.index.tolist() == [b * T + t for document in expected for b, t in document]
    assert documents.position.tolist() == [i for d in expected for i in range(len(d))]
    assert documents.document.tolist() == [n for n, d in enumerate(expected) for _ in d]
    assert documents.num_tokens == sum(documents.lengths)
    assert documents.num_documents == len(expected)


@pytest.mark.parametrize(
    ("mask", "positions", "column"),
    [
        ([1, 1, 0, 1, 1], None, 2),
        ([2, 2, 0, 2, 2], None, 2),
        ([1, 1, 0, 1, 1], [0, 1, 2, 3, 4], 2),
        ([1, 0, 0, 1, 0], None, 2),
    ],
)
def test_a_hole_in_a_document_is_refused(mask, positions, column):
    """Its tokens would be scored as if those on both sides stood side by side."""
    ids = torch.ones(2, 5, dtype=torch.long)
    rows = torch.tensor([[1] * 5, mask])
    places = None if positions is None else torch.tensor([[0, 1, 2, 3, 4], positions])
    with pytest.raises(ValueError, match=rf"has a hole: row 1, column {column}.*restart at 0"):
        find_documents(ids, rows, places)


@pytest.mark.parametrize(
    ("mask", "positions", "lengths"),
    [
        ([1, 1, 0, 2, 2], None, [2, 2]),
        ([1, 1, 0, 1, 1], [0, 1, 0, 0, 1], [2, 2]),
        ([1, 1, 0, 1, 1], [0, 1, 1, 2, 3], [4]),  # the model counts on, too
        ([0, 0, 1, 1, 1], [0, 1, 2, 3, 4], [3]),
        ([0, 3, 3, 1, 0], None, [2, 1]),
    ],
)
def test_padding_between_tokens(mask, positions, lengths):
    ids = torch.ones(1, 5, dtype=torch.long)
    places = None if positions is None else torch.tensor([positions])
    assert find_documents(ids, torch.tensor([mask]), places).lengths == lengths


@given(batches(), st.sampled_from(["bool", "int", "float"]))
def test_a_mask_of_pairs_tells_the_same_documents(batch, kind):
    ids, mask, positions = batch
    documents = find_documents(ids, mask, positions)
    B, T = ids.shape
    number = torch.zeros(B * T, dtype=torch.long)
    number[documents.index] = documents.document + 1
    number = number.view(B, T)
    pairs = (number.unsqueeze(1) == number.unsqueeze(2)).tril() & (number != 0).unsqueeze(-1)
    given = {
        "bool": pairs,
        "int": pairs.long(),
        "float": torch.where(pairs, 0.0, torch.finfo(torch.float32).min),
    }[kind]
    again = find_documents(ids, mask_of_pairs(given.unsqueeze(1), ids.shape), None)
    assert again.lengths == documents.lengths
    assert torch.equal(again.index, documents.index)


def test_one_mask_of_pairs_for_all_rows():
    number = torch.tensor([0, 1, 1, 2])
    pairs = (number == number.unsqueeze(1)).tril() & (number != 0).unsqueeze(-1)
    assert mask_of_pairs(pairs[None, None], torch.Size((3, 4))).tolist() == [number.tolist()] * 3


def sliding_window():
    pairs = torch.ones(5, 5, dtype=torch.bool).tril()
    pairs[4, 0] = False
    return pairs


@pytest.mark.parametrize(
    "pairs",
    [
        sliding_window(),
        torch.ones(5, 5, dtype=torch.bool),  # looks ahead
        torch.ones(5, 5, dtype=torch.bool).tril() & (torch.arange(5) != 2),  # a hole
    ],
)
def test_a_mask_that_shows_less_or_more_than_the_document_is_refused(pairs):
    with pytest.raises(ValueError, match=r"up to itself and nothing else.*restart at 0"):
        mask_of_pairs(pairs[None, None], torch.Size((1, 5)))
