"""The table of edits in memory, against a plain dict."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toedit_collate.stores.journal.replay import EditTable
from toedit_collate.stores.ragged import ranges

KEYS = st.one_of(st.integers(0, 8), st.integers(2**64 - 4, 2**64 - 1), st.integers(0, 2**64 - 1))
TOKENS = st.integers(0, 2**31 - 2)
CHANGES = st.lists(
    st.tuples(st.integers(0, 2**31 - 1), TOKENS, st.one_of(TOKENS, st.just(-1))), max_size=3
)
EDITS = st.lists(st.tuples(KEYS, CHANGES), max_size=6)


def as_array(changes):
    return np.array(changes, np.int64).reshape(-1, 3)


def add(table, edits):
    table.add(
        np.array([key for key, _ in edits], np.uint64),
        np.array([len(changes) for _, changes in edits], np.int64),
        as_array([change for _, changes in edits for change in changes]),
    )


def look_up(table, keys):
    """What the table knows, as a list: the changes of each key, or None."""
    found = table.look_up(np.array(keys, np.uint64))
    edits = [[] if known else None for known in found.known]
    for document, change in zip(found.document, found.changes.tolist(), strict=True):
        edits[document].append(tuple(change))
    return edits


@given(
    batches=st.lists(EDITS, max_size=8),
    others=st.lists(KEYS, max_size=4),
)
def test_the_first_edit_of_a_document_stands(batches, others):
    table, expected = EditTable(), {}
    for edits in batches:
        add(table, edits)
        for key, changes in edits:
            expected.setdefault(key, changes)
        keys = [*expected, *others, *expected]
        assert look_up(table, keys) == [expected.get(key) for key in keys]
        assert len(table) == len(expected)


@pytest.mark.parametrize("num", [100, 1000])
def test_many_batches_are_merged_into_few_parts(num):
    table = EditTable()
    for key in range(num):
        add(table, [(key * 7919 % num, [(1, 2, key)])])
        assert len(table._index._parts) <= 5
    assert look_up(table, range(0, num, 9)) == [
        [(1, 2, key)] for at in range(0, num, 9) for key in range(num) if key * 7919 % num == at
    ]


def test_what_is_added_may_be_changed_afterwards():
    table, changes = EditTable(), as_array([(1, 2, 3)])
    table.add(np.array([5], np.uint64), np.array([1]), changes)
    changes[:] = 0
    assert look_up(table, [5]) == [[(1, 2, 3)]]


def test_an_empty_table_knows_nothing():
    assert look_up(EditTable(), [0, 1]) == [None, None]
    assert look_up(EditTable(), []) == []


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=8))
def test_ranges(pairs):
    begin, counts = np.array(pairs, np.int64).reshape(-1, 2).T
    expected = [b + i for b, n in pairs for i in range(n)]
    assert ranges(begin, counts).tolist() == expected
