import reference
from hypothesis import given
from layouts import batches

from toedit_collate.tokens.documents import find_documents


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
