import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toedit_collate import layout
from toedit_collate.layout import find_documents, scoring_rows


@st.composite
def batches(draw):
    """A batch of documents: padded on either side, packed, or with padding anywhere."""
    B = draw(st.integers(1, 4))
    T = draw(st.integers(1, 12))
    ids = torch.arange(1, B * T + 1).view(B, T)
    kind = draw(st.sampled_from(["plain", "left", "right", "packed", "packed+mask", "holes"]))
    mask = positions = None
    if kind in ("left", "right"):
        lengths = torch.tensor(draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
        mask = (torch.arange(T) < lengths.unsqueeze(1)).long()
        mask = mask.flip(1) if kind == "left" else mask
    if kind == "holes" or kind == "packed+mask":
        mask = torch.tensor(
            draw(
                st.lists(
                    st.lists(st.integers(0, 1), min_size=T, max_size=T), min_size=B, max_size=B
                )
            )
        )
    if kind in ("packed", "packed+mask"):
        starts = torch.tensor(
            draw(st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=B, max_size=B))
        )
        starts[:, 0] = True
        place = torch.arange(T).expand(B, T)
        positions = place - torch.where(starts, place, 0).cummax(-1).values
    return ids, mask, positions


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


@given(batches(), st.sampled_from([(0.0, 0), (0.3, 4), (10.0, 100)]))
@settings(max_examples=200)
def test_rows_hold_every_document_once(batch, limits):
    ids, mask, positions = batch
    old = layout.MAX_PADDED_SHARE, layout.MIN_PADDED_TOKENS
    layout.MAX_PADDED_SHARE, layout.MIN_PADDED_TOKENS = limits
    try:
        documents = find_documents(ids, mask, positions)
        tokens = ids.reshape(-1)[documents.index]
        seen = torch.zeros_like(tokens)
        for rows, members, cells in scoring_rows(documents, tokens):
            seen[members] += 1
            assert torch.equal(rows.flatten()[cells], tokens[members])
            assert torch.equal(cells % rows.shape[1], documents.position[members])
            # A row holds one document: as many real tokens as distinct (row, document) pairs.
            row = cells // rows.shape[1]
            assert len(
                set(zip(row.tolist(), documents.document[members].tolist(), strict=True))
            ) == len(rows)
        assert (seen == 1).all()
    finally:
        layout.MAX_PADDED_SHARE, layout.MIN_PADDED_TOKENS = old


def test_a_batch_of_similar_lengths_is_scored_in_one_piece():
    mask = torch.ones(8, 64, dtype=torch.long)
    mask[::2, 40:] = 0
    documents = find_documents(torch.ones(8, 64, dtype=torch.long), mask, None)
    assert len(list(scoring_rows(documents, torch.ones(documents.num_tokens)))) == 1


def test_one_long_and_many_short_documents_are_not_padded_to_the_longest():
    lengths = [2000] + [20] * 100
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    documents = find_documents(positions, None, positions)
    tokens = positions.flatten()
    cells = sum(rows.numel() for rows, _, _ in scoring_rows(documents, tokens))
    assert documents.lengths == lengths
    assert cells < 3 * sum(lengths)  # padded to the longest it would be 50 times as much
