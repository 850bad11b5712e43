import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from toedit_collate.tokens.draws import Draws, document_keys, philox4x32, token_uniforms


def words(*values):
    return np.array([[value] for value in values], dtype=np.uint64)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # Known answers of the authors' library Random123 (kat_vectors).
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, expected):
    assert tuple(philox4x32(words(*counter), words(*key))[:, 0].tolist()) == expected
    assert tuple(reference.philox(counter, key)) == expected


def draws(documents, *, seed=0, epoch=0, generation=0, num_draws=1):
    tokens = np.concatenate(documents)
    number = np.repeat(np.arange(len(documents)), [len(ids) for ids in documents])
    position = np.concatenate([np.arange(len(ids)) for ids in documents])
    keys = document_keys(tokens, number, position, len(documents))
    uniforms = token_uniforms(keys, number, position, Draws(seed, epoch, generation), num_draws)
    return np.split(uniforms, np.cumsum([len(ids) for ids in documents])[:-1])


@given(
    ids=st.lists(st.integers(0, 200_000), min_size=1, max_size=12),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.none() | st.integers(0, 1000),
    generation=st.integers(0, 100),
)
def test_matches_the_reference(ids, seed, epoch, generation):
    (uniforms,) = draws([ids], seed=seed, epoch=epoch, generation=generation)
    expected = [
        reference.uniform(ids, i, seed=seed, epoch=epoch, generation=generation)
        for i in range(len(ids))
    ]
    assert uniforms.tolist() == expected


@given(
    ids=st.lists(st.integers(0, 200_000), min_size=1, max_size=5),
    num_draws=st.integers(2, 7),
    epoch=st.none() | st.integers(0, 1000),
)
def test_several_draws_match_the_reference(ids, num_draws, epoch):
    (uniforms,) = draws([ids], seed=3, epoch=epoch, generation=1, num_draws=num_draws)
    expected = [
        [
            reference.uniform(ids, i, seed=3, epoch=epoch, generation=1, number=number)
            for number in range(num_draws)
        ]
        for i in range(len(ids))
    ]
    assert uniforms.tolist() == expected
    (first,) = draws([ids], seed=3, epoch=epoch, generation=1)
    assert uniforms[:, 0].tolist() == first.tolist()


def test_no_tokens_get_no_draws():
    assert draws([[]])[0].shape == (0,)
    assert draws([[]], num_draws=3)[0].shape == (0, 3)


def test_a_document_has_the_same_draws_beside_any_other():
    document, other = [5, 6, 7, 8], [9, 5]
    (alone,) = draws([document])
    _, together = draws([other, document])
    assert np.array_equal(alone, together)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"seed": 2**32}, {"epoch": 1}, {"epoch": None}, {"generation": 1}],
)
def test_each_key_matters(change):
    document = [5, 6, 7, 8]
    assert not (draws([document])[0] == draws([document], **change)[0]).any()


@pytest.mark.parametrize("other", [[5, 6, 8, 7], [5, 6, 7], [5, 6, 7, 8, 9], [6, 6, 7, 8]])
def test_content_and_order_matter(other):
    first, second = draws([[5, 6, 7, 8], other])
    shared = min(len(first), len(second))
    assert not (first[:shared] == second[:shared]).any()


def test_draws_are_uniform_and_independent():
    documents = [[n, n + 1, 3] * 10 for n in range(3000)]
    uniforms = np.stack(draws(documents))  # 90,000 draws
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert stats.kstest(uniforms.flatten(), "uniform").pvalue > 0.001
    correlation = np.corrcoef(uniforms.T) - np.eye(30)
    assert np.abs(correlation).max() < 5 / 3000**0.5
