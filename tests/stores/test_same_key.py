"""Documents of one 64-bit key of draws, which can be made in seconds: neither gets the other's."""

import numpy as np
import pytest
import torch
from conftest import make_llama

from toedit_collate import EditPolicy, Journal, Prior, edit_tokens
from toedit_collate.editing.with_journal import edit_with_journal
from toedit_collate.stores.cache import DecisionCache, Identity
from toedit_collate.stores.journal import keys_of
from toedit_collate.tokens.draws import content_digests, document_keys, token_words
from toedit_collate.tokens.token_batch import TokenBatch

POLICY = EditPolicy(region="below", threshold=0.5, exclude_original=True, seed=3)
VOCAB_SIZE = 64
WIDTH = 4  # positions of a group: 64**4 texts, of which 2**16 are tried


def two_of_one_key(seed=0):
    """Two texts of 33 tokens whose words have one sum modulo 2**64.

    Wagner's "A generalized birthday problem" (CRYPTO 2002) with eight lists of 2**16: the sums of
    pairs agree in 16 bits, those of fours in 32, and those of all eight in 64.
    """
    generator = np.random.default_rng(seed)
    fixed = generator.integers(5, VOCAB_SIZE, 1 + 8 * WIDTH)
    target = words_of(fixed, np.arange(len(fixed))).sum(dtype=np.uint64)
    lists = []
    for group in range(8):
        position = 1 + WIDTH * group + np.arange(WIDTH)
        texts = generator.integers(5, VOCAB_SIZE, (2**16, WIDTH))
        sums = words_of(texts.reshape(-1), np.tile(position, 2**16)).reshape(-1, WIDTH)
        lists.append((sums.sum(1, dtype=np.uint64), texts))
    first = words_of(fixed[:1], np.zeros(1, np.int64))[0]
    lists[0] = (lists[0][0] + first - target, lists[0][1])
    for bits in (16, 32, 64):
        lists = [paired(*pair, bits) for pair in zip(lists[::2], lists[1::2], strict=True)]
    (_, found) = lists[0]
    return fixed, np.concatenate([fixed[:1], found[0]])


def batch_of(rows):
    return TokenBatch.of(rows, None, None, None)


def words_of(tokens, position):
    return np.asarray(token_words(np.asarray(tokens), np.asarray(position))).view(np.uint64)


def paired(one, other, bits):
    """Sums of one from each, of which the lowest bits are 0; and their texts."""
    (sums, texts), (more, others) = one, other
    mask = np.uint64(2**bits - 1)
    order = np.argsort(more & mask)
    sought, there = -sums & mask, (more & mask)[order]
    begin, end = (np.searchsorted(there, sought, side) for side in ("left", "right"))
    rows = np.repeat(np.arange(len(sums)), end - begin)[: 2**17]
    steps = np.concatenate([np.arange(a, b) for a, b in zip(begin, end, strict=True) if b > a])
    matching = order[steps[: 2**17]]
    return sums[rows] + more[matching], np.concatenate([texts[rows], others[matching]], axis=1)


@pytest.fixture(scope="module")
def texts():
    for seed in range(20):  # one in three has no pair
        try:
            one, other = two_of_one_key(seed)
        except (IndexError, ValueError):
            continue
        return torch.from_numpy(np.stack([one, other]))
    pytest.fail("no pair was found")
    return None


@pytest.fixture(scope="module")
def prior():
    return Prior(make_llama(vocab_size=VOCAB_SIZE))


def test_they_have_one_key_of_draws_and_two_digests(texts):
    T = texts.shape[1]
    document, position = np.repeat([0, 1], T), np.tile(np.arange(T), 2)
    one, other = document_keys(texts.reshape(-1).numpy(), document, position, 2)
    assert one == other
    assert (texts[0] != texts[1]).sum() > 10
    digests = content_digests(texts.reshape(-1).numpy(), [T, T])
    assert (digests[0] != digests[1]).all()
    assert len(set(keys_of(texts.reshape(-1), [T, T]).tolist())) == 2


@pytest.mark.parametrize("first", [0, 1])
def test_a_cache_gives_each_its_own(texts, prior, first, tmp_path):
    expected = [edit_tokens(prior, text[None], policy=POLICY).input_ids for text in texts]
    cache = DecisionCache(tmp_path)
    for number in (first, 1 - first, first):
        edited = edit_tokens(prior, texts[number, None], policy=POLICY, cache=cache)
        assert torch.equal(edited.input_ids, expected[number])
        assert edited.changed.sum() > 3
        cache.flush()
    assert cache.num_documents == 2


def test_a_journal_gives_each_its_own(texts, prior, tmp_path):
    expected = [edit_tokens(prior, text[None], policy=POLICY).input_ids for text in texts]
    with Journal(tmp_path) as journal:
        for number in (0, 1, 0, 1):
            final = edit_with_journal(
                prior, journal, batch_of(texts[number, None]), policy=POLICY, step=0
            ).final
            assert torch.equal(final.input_ids, expected[number])
        for text, edited in zip(texts, expected, strict=True):
            assert journal.replay(text.tolist(), 1) == edited[0].tolist()


def test_another_check_is_another_document(prior, texts):
    """As if 64 bits of the digest were equal, too."""
    cache = DecisionCache()
    edit_tokens(prior, texts[:1], policy=POLICY, cache=cache)
    editable = np.ones(texts.shape[1], bool)
    editable[0] = False
    cache.open(Identity.of(prior, POLICY))
    (digest,) = content_digests(texts[0].numpy(), [texts.shape[1]], editable)
    assert cache.look_up(digest[:1], digest[1:])[0].all()
    known, decisions = cache.look_up(digest[:1], digest[1:] + np.uint64(1))
    assert not known.any()
    assert not len(decisions)
