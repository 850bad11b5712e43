"""The decision cache: against a dictionary, on disk, between processes, and without a prior."""

import gc
import json
import logging
import multiprocessing
import os
import pickle
import re
import signal

import numpy as np
import pytest
import torch
from conftest import make_llama, make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journals import in_child
from safetensors import safe_open

from toedit_collate import EditPolicy, Prior, edit_tokens
from toedit_collate.prior.base import BasePrior
from toedit_collate.stores import segments as segments_module
from toedit_collate.stores.cache import CachedPrior, DecisionCache, Decisions, Identity
from toedit_collate.stores.cache import store as store_module
from toedit_collate.stores.cache.decisions import list_segments
from toedit_collate.stores.cache.identity import decision_record, tokenizer_hash
from toedit_collate.stores.segments import DamagedFileError

VOCAB_SIZE = 2**20
SETTINGS = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


def identity(**changes):
    """Of no prior in particular."""
    facts = {
        "prior": "a" * 32,
        "policy": decision_record(EditPolicy()),
        "tokenizer": "t" * 32,
        "tokenizer_size": VOCAB_SIZE,
        "vocab_size": VOCAB_SIZE,
        "max_length": 64,
        "pad_id": 2,
        "special_ids": (0, 1),
        "template_patterns": ("<|user|>\n",),
        "template_tails": ("\n",),
    }
    return Identity(**{**facts, **changes})


def checks_of(keys):
    """The other half of a digest; some number that follows from the key."""
    return np.array(keys, np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)


def ask(cache, keys):
    return cache.look_up(np.array(keys, np.uint64), checks_of(keys))


def make(documents):
    """Decisions from a plain form: [(key, [(position, [(id, weight), ...]), ...]), ...].

    Documents with an even key and decided tokens also have tokens that can't be scored: places
    1000 more than those of the decided ones.
    """
    tokens = [token for _, of in documents for token in of]
    candidates = [pair for _, pairs in tokens for pair in pairs]
    unscored = [unscored_of(document) for document in documents]
    whole = any(isinstance(x, int) for _, x in candidates)
    return Decisions.of(
        keys=np.array([key for key, _ in documents], np.uint64),
        checks=checks_of([key for key, _ in documents]),
        counts=np.array([len(of) for _, of in documents], np.int64),
        position=np.array([position for position, _ in tokens], np.int64),
        num_candidates=np.array([len(pairs) for _, pairs in tokens], np.int64),
        ids=np.array([i for i, _ in candidates], np.int64),
        weights=torch.tensor(
            [x for _, x in candidates], dtype=torch.int64 if whole else torch.float32
        ),
        num_unscored=np.array([len(of) for of in unscored], np.int64),
        unscored=np.array([place for of in unscored for place in of], np.int64),
    )


def unscored_of(document):
    key, tokens = document
    return [] if key % 2 else [1000 + position for position, _ in tokens]


def plain(decisions):
    """The plain form, with the bits of logits instead of their values."""
    bits = decisions.weights.tolist()
    if decisions.weights.is_floating_point():
        bits = decisions.weights.float().numpy().view(np.uint32).tolist()
    pairs = iter(zip(decisions.ids.tolist(), bits, strict=True))
    widths = iter(zip(decisions.position.tolist(), decisions.num_candidates.tolist(), strict=True))
    documents = []
    for key, count in zip(decisions.keys.tolist(), decisions.counts.tolist(), strict=True):
        tokens = []
        for _ in range(count):
            position, num_candidates = next(widths)
            tokens.append((position, [next(pairs) for _ in range(num_candidates)]))
        documents.append((key, tokens))
    assert next(pairs, None) is None
    assert next(widths, None) is None
    assert decisions.unscored.tolist() == [p for one in documents for p in unscored_of(one)]
    assert decisions.num_unscored.tolist() == [len(unscored_of(one)) for one in documents]
    return documents


def some(*keys, num_tokens=2):
    """Decisions of documents that follow from their keys."""
    return make(
        [
            (key, [(p + 1, [(key % 1000, p / 2), (key % 1000 + 1, -1.5)]) for p in range(key % 3)])
            if num_tokens == 2
            else (key, [(p, [(p % 7, 0.5)]) for p in range(num_tokens)])
            for key in keys
        ]
    )


def bfloat16(x):
    return float(torch.tensor(x).bfloat16())


def float16(x):
    return float(torch.tensor(x).half())


LOGITS = st.floats(width=32, allow_nan=False, allow_infinity=True)


@st.composite
def plain_documents(draw, max_size=6, max_position=70_000):
    """Documents of any sizes, with logits that fit in 16 bits or not."""
    rounded = draw(st.sampled_from([float, bfloat16, float16]))
    high = draw(st.sampled_from([200, 2**16 - 1, 2**17, VOCAB_SIZE - 1]))
    logit = LOGITS.map(rounded)
    candidates = st.dictionaries(st.integers(0, high), logit, max_size=4).map(
        lambda found: sorted(found.items())
    )
    tokens = st.dictionaries(st.integers(1, max_position), candidates, max_size=4).map(
        lambda found: sorted(found.items())
    )
    keys = st.one_of(st.integers(0, 8), st.integers(0, 2**64 - 1))
    return draw(st.lists(st.tuples(keys, tokens), max_size=max_size))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def opened(path=None, of=None, **settings):
    cache = DecisionCache(path, **settings)
    cache.open(of or identity())
    return cache


def segments(folder, of=None):
    sub = folder / (of or identity()).digest
    return [sub / name for name in list_segments(sub)]


class TestDecisions:
    @given(plain_documents(), st.data())
    @SETTINGS
    def test_select_and_concatenate_like_lists(self, documents, data):
        decisions = make(documents)
        reference = plain(decisions)
        assert [key for key, _ in reference] == [key for key, _ in documents]
        chosen = data.draw(
            st.lists(st.integers(0, max(len(documents) - 1, 0)), max_size=8)
            if documents
            else st.just([])
        )
        selected = decisions.select(np.array(chosen, np.int64))
        assert plain(selected) == [reference[n] for n in chosen]
        joined = Decisions.concatenate([decisions, selected, Decisions.empty()])
        assert plain(joined) == reference + plain(selected)
        assert len(joined) == len(documents) + len(chosen)

    @pytest.mark.parametrize(
        ("weights", "dtype"),
        [
            ([1.5, -0.0, float("-inf"), 3e38], torch.bfloat16),
            ([1.0009765625, 2.0], torch.float16),
            ([1.0009765625, 1e30], torch.float32),
            ([0.1], torch.float32),
            ([3, 255], torch.uint8),
            ([3, 256], torch.int32),
        ],
    )
    def test_weights_take_the_smallest_type_that_holds_every_bit(self, weights, dtype):
        if dtype == torch.bfloat16:
            weights = [bfloat16(x) for x in weights]
        decisions = make([(1, [(1, list(enumerate(weights)))])])
        assert decisions.weights.dtype == dtype
        expected = torch.tensor(weights).view(-1)
        assert torch.equal(decisions.weights.to(expected.dtype), expected)

    @pytest.mark.parametrize(("largest", "num_bytes"), [(5, 2), (65535, 2), (65536, 3), (2**24, 4)])
    def test_ids_take_few_bytes(self, largest, num_bytes):
        decisions = make([(1, [(1, [(4, 0.0), (largest, 0.0)])])])
        assert decisions.id_bytes.shape == (2, num_bytes)
        assert decisions.ids.tolist() == [4, largest]

    def test_a_document_of_a_large_model_takes_few_bytes(self):
        """As docs/caches.md and the docstring say: 8 candidates, 16 bits, 128k ids."""
        token = [(100_000 + n, n / 4) for n in range(8)]
        none, one = (make([(1, [(500, token)] * n)]).nbytes for n in (0, 1))
        assert none == 18
        assert one - none == 43

    def test_draws_take_three_bytes_for_each_id(self):
        token = [(3 * n, 1 + n) for n in range(26)]
        none, one = (make([(1, [(500, token)] * n)]).nbytes for n in (0, 1))
        assert one - none == 3 * 26 + 3


class TestLookUp:
    """Against a dictionary."""

    @given(
        batches=st.lists(plain_documents(), max_size=6),
        asked=st.lists(st.integers(0, 9), max_size=12),
        on_disk=st.booleans(),
        data=st.data(),
    )
    @SETTINGS
    def test_knows_what_a_dictionary_knows(self, tmp_path_factory, batches, asked, on_disk, data):
        path = tmp_path_factory.mktemp("cache") if on_disk else None
        cache, reference = opened(path), {}
        for batch in batches:
            decisions = make(batch)
            cache.add(decisions)
            for key, tokens in plain(decisions):
                reference.setdefault(key, tokens)
            action = data.draw(st.sampled_from(["go on", "flush", "refresh", "reopen"]))
            if action == "flush":
                cache.flush()
            elif action == "refresh":
                cache.refresh()
            elif action == "reopen" and on_disk:
                cache.close()
                cache = opened(path)
        keys = [*asked, *list(reference)[::-1], *asked]
        known, decisions = ask(cache, np.array(keys, np.uint64))
        assert known.tolist() == [key in reference for key in keys]
        assert plain(decisions) == [(key, reference[key]) for key in keys if key in reference]
        assert cache.num_documents == len(reference)

    def test_many_batches_are_merged_into_few_blocks(self):
        cache = opened()
        for number in range(200):
            cache.add(some(*range(10 * number, 10 * number + 10)))
        assert len(cache._blocks) < 10
        known, found = ask(cache, np.arange(2000, dtype=np.uint64))
        assert known.all()
        assert plain(found) == plain(some(*range(2000)))


class TestLimit:
    def test_nothing_more_is_admitted(self, caplog):
        cache = opened(max_bytes=1000)
        with caplog.at_level(logging.WARNING, "toedit_collate"):
            for number in range(50):
                cache.add(some(*range(10 * number, 10 * number + 10)))
        assert 500 < cache.nbytes <= 1000
        assert cache.num_documents >= 10
        (warning,) = caplog.messages
        assert re.search(
            rf"max_bytes=1000, {cache.num_documents} documents.*raise max_byt", warning
        )
        # What came first stays: training comes back to it first.
        assert ask(cache, np.arange(10, dtype=np.uint64))[0].all()

    def test_exactly_full(self):
        first = some(*range(10))
        cache = opened(max_bytes=first.nbytes)
        cache.add(first)
        assert cache.num_documents == 10

    def test_a_full_folder_is_full_when_it_is_opened(self, folder):
        with opened(folder) as cache:
            cache.add(some(*range(100)))
        cache = opened(folder, max_bytes=1000)
        cache.add(some(1000))
        assert cache.num_documents == 100

    @pytest.mark.parametrize("value", [0, -1, 1.5, True, "1"])
    def test_values(self, value):
        with pytest.raises(ValueError, match=r"max_bytes.*2\*\*30"):
            DecisionCache(max_bytes=value)


class TestIdentityOfDecisions:
    def test_memory_is_cleared(self):
        cache = opened()
        cache.add(some(1, 2))
        cache.open(identity())
        assert cache.num_documents == 2
        cache.open(identity(prior="b" * 32))
        assert cache.num_documents == 0
        cache.open(identity())
        assert cache.num_documents == 0

    @pytest.mark.parametrize(
        "change",
        [
            {"prior": "b" * 32},
            {"policy": decision_record(EditPolicy(threshold=0.999))},
            {"tokenizer": "u" * 32},
            {"special_ids": (0, 1, 7)},
        ],
    )
    def test_another_is_another_sub_folder(self, folder, change):
        cache = opened(folder)
        cache.add(some(1, 2))
        cache.open(identity(**change))
        assert cache.num_documents == 0
        cache.add(some(3))
        cache.open(identity())
        assert cache.num_documents == 2
        cache.close()
        assert len(segments(folder)) == len(segments(folder, identity(**change))) == 1
        assert not ask(cache, np.array([3], np.uint64))[0].any()

    def test_seed_and_redraw_decide_nothing(self):
        assert decision_record(EditPolicy(seed=5, redraw="never")) == decision_record(EditPolicy())
        assert decision_record(EditPolicy(top_k=9)) != decision_record(EditPolicy())

    def test_of_a_prior(self, tokenizer):
        prior = Prior(make_llama(), tokenizer)
        found = Identity.of(prior, EditPolicy())
        assert found.prior == prior.fingerprint
        assert found.tokenizer == tokenizer_hash(make_tokenizer()) != ""
        assert found.max_length == prior.max_length == 256
        assert found.special_ids == tuple(sorted(prior.special_ids))
        assert Identity.of(prior, EditPolicy()) is found  # cheap, batch after batch
        assert Identity.of(prior, EditPolicy(top_k=9)).digest != found.digest
        assert Identity.of(prior, EditPolicy(seed=9)).digest == found.digest
        prior.swap(make_llama(seed=1).state_dict())
        assert Identity.of(prior, EditPolicy()).digest != found.digest

    def test_comes_back_from_its_folder(self, tmp_path, tokenizer):
        found = Identity.of(Prior(make_llama(), tokenizer), EditPolicy())
        with opened(tmp_path, found) as cache:
            cache.add(some(1))
        assert DecisionCache(tmp_path).prior().identity == found

    def test_of_a_prior_without_a_tokenizer(self):
        found = Identity.of(Prior(make_llama()), EditPolicy())
        assert (found.tokenizer, found.tokenizer_size, found.special_ids) == ("", 0, ())


class TestFolder:
    def test_is_made_with_the_first_segment(self, folder):
        cache = opened(folder)
        ask(cache, np.zeros(1, np.uint64))
        cache.close()
        assert not folder.exists()
        (folder.parent / "file.txt").write_text("")
        with pytest.raises(NotADirectoryError, match=r"file\.txt"):
            DecisionCache(folder.parent / "file.txt")

    def test_segments_are_mapped_and_may_be_read_only(self, folder):
        with opened(folder) as cache:
            cache.add(some(*range(100)))
        (segment,) = segments(folder)
        segment.chmod(0o400)
        segment.parent.chmod(0o500)
        try:
            cache = opened(folder)
            known, found = ask(cache, np.arange(100, dtype=np.uint64)[::-1])
            assert known.all()
            assert plain(found) == plain(some(*range(99, -1, -1)))
            with open("/proc/self/maps") as maps:
                assert str(segment) in maps.read()
        finally:
            segment.parent.chmod(0o700)

    def test_segments_are_safetensors(self, folder):
        with opened(folder) as cache:
            cache.add(some(4, 5))
        (segment,) = segments(folder)
        with safe_open(segment, "pt") as file:
            assert file.get_tensor("weights").dtype == torch.bfloat16
            assert file.get_tensor("keys").tolist() == [4, 5]
            assert json.loads(file.metadata()["facts"])["identity"]["prior"] == identity().prior

    def test_a_large_one_is_written_without_being_asked(self, folder, monkeypatch):
        monkeypatch.setattr(store_module, "SEGMENT_BYTES", 1000)
        cache = opened(folder)
        for key in range(200):
            cache.add(some(key))
        assert len(segments(folder)) > 2
        written = opened(folder).num_documents
        assert 100 < written < 200
        cache.close()
        assert opened(folder).num_documents == 200

    def test_written_when_it_goes_out_of_use(self, folder):
        opened(folder).add(some(1))
        gc.collect()
        assert opened(folder).num_documents == 1

    def test_many_small_ones(self, folder):
        for key in range(30):
            with opened(folder) as cache:
                cache.add(some(key, key + 1))
        assert len(segments(folder)) == 30
        cache = opened(folder)
        known, found = ask(cache, np.arange(32, dtype=np.uint64)[::-1])
        assert known.tolist() == [False] + [True] * 31
        assert plain(found) == plain(some(*range(30, -1, -1)))
        assert len(cache._index._parts) == 1

    def test_what_cannot_be_written_stays_in_memory(self, folder, monkeypatch, caplog):
        def fail(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Decisions, "write", fail)
        monkeypatch.setattr(store_module, "SEGMENT_BYTES", 1)
        cache = opened(folder)
        with caplog.at_level(logging.WARNING, "toedit_collate"):
            for key in range(20):
                cache.add(some(key))
        (warning,) = caplog.messages
        assert re.search(r"can't be written .*No space left.*in memory", warning)
        assert ask(cache, np.arange(20, dtype=np.uint64))[0].all()
        with pytest.raises(OSError, match="No space left"):
            cache.flush()
        monkeypatch.undo()
        cache.flush()
        assert opened(folder).num_documents == 20


class TestProcesses:
    def test_write_to_one_folder_and_read_each_other(self, folder, monkeypatch):
        one, other = opened(folder), opened(folder)
        one.add(some(1, 2))
        monkeypatch.setenv("RANK", "3")
        other.add(some(2, 3))
        one.flush()
        other.flush()
        assert not ask(other, np.array([1], np.uint64))[0].any()
        for cache in (one, other):
            cache.refresh()
            assert ask(cache, np.array([1, 2, 3], np.uint64))[0].all()
        names = [path.name for path in segments(folder)]
        assert len(names) == 2
        assert all(name.startswith("rank-00003") for name in names)

    def test_at_the_same_time(self, folder):
        def write(start):
            with opened(folder) as cache:
                for key in range(start, start + 40):
                    cache.add(some(key))
                    cache.flush()

        context = multiprocessing.get_context("fork")
        running = [context.Process(target=write, args=(start,)) for start in (0, 20)]
        for process in running:
            process.start()
        for process in running:
            process.join()
        assert [process.exitcode for process in running] == [0, 0]
        known, found = ask(opened(folder), np.arange(61, dtype=np.uint64))
        assert known.tolist() == [True] * 60 + [False]
        assert plain(found) == plain(some(*range(60)))

    def test_a_pickle_holds_no_decisions(self, folder):
        with opened(folder) as cache:
            cache.add(some(*range(10_000)))
            sent = pickle.dumps(cache)
        assert len(sent) < 2000
        other = pickle.loads(sent)
        other.open(identity())
        assert other.max_bytes == cache.max_bytes
        assert ask(other, np.arange(3, dtype=np.uint64))[0].all()
        assert pickle.loads(pickle.dumps(opened())).num_documents == 0

    def test_a_forked_worker_does_not_write_for_its_parent(self, folder):
        cache = opened(folder)
        cache.add(some(1, 2))

        def work():
            knew = ask(cache, np.array([1, 2], np.uint64))[0].all()
            cache.add(some(3))
            cache.flush()
            return bool(knew)

        assert in_child(work) is True
        assert opened(folder).num_documents == 1
        cache.close()
        cache.refresh()
        assert cache.num_documents == opened(folder).num_documents == 3

    def test_killed_in_the_middle_of_a_write(self, folder, monkeypatch):
        with opened(folder) as cache:
            cache.add(some(1))

        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        def work():
            monkeypatch.setattr(segments_module.os, "fsync", die)
            with opened(folder) as cache:
                cache.add(some(2))

        assert in_child(work) == "killed"
        (left,) = (folder / identity().digest).glob("*.unfinished")
        assert left.stat().st_size
        cache = opened(folder)
        assert ask(cache, np.array([1, 2], np.uint64))[0].tolist() == [True, False]
        cache.add(some(2))
        cache.close()
        assert opened(folder).num_documents == 2


class TestDamage:
    @pytest.fixture
    def segment(self, folder):
        with opened(folder) as cache:
            cache.add(some(*range(20)))
        (segment,) = segments(folder)
        return segment

    def refused(self, folder, segment, what):
        with pytest.raises(DamagedFileError, match=rf"{segment}.*{what}.*delete it"):
            ask(opened(folder), np.zeros(1, np.uint64))
        segment.unlink()
        assert opened(folder).num_documents == 0

    def test_cut_anywhere(self, folder, segment):
        whole = segment.read_bytes()
        for length in [0, 5, 8, 100, len(whole) // 2, len(whole) - 1]:
            segment.write_bytes(whole[:length])
            self.refused(folder, segment, "damaged")

    def test_documents_changed(self, folder, segment):
        with safe_open(segment, "pt") as file:
            names = list(file.keys())
        whole = segment.read_bytes()
        for name in ("keys", "counts", "num_unscored"):
            assert name in names
            header = int.from_bytes(whole[:8], "little")
            offsets = json.loads(whole[8 : 8 + header])[name]["data_offsets"]
            damaged = bytearray(whole)
            damaged[8 + header + offsets[1] - 8] ^= 1
            segment.write_bytes(damaged)
            self.refused(folder, segment, "damaged")

    @pytest.mark.parametrize(("name", "value"), [("id_bytes", 255), ("num_candidates", 200)])
    def test_tokens_changed(self, folder, name, value):
        with opened(folder) as cache:
            cache.add(make([(1, [(1, [(2**17, 0.5)])])]))
        (segment,) = segments(folder)
        whole = bytearray(segment.read_bytes())
        header = int.from_bytes(whole[:8], "little")
        begin = json.loads(whole[8 : 8 + header])[name]["data_offsets"][0]
        whole[8 + header + begin] = value
        segment.write_bytes(whole)
        with pytest.raises(DamagedFileError, match=rf"{segment}.*delete it"):
            ask(opened(folder), np.ones(1, np.uint64))

    def test_of_another_identity(self, folder, segment):
        other = identity(prior="b" * 32)
        with opened(folder, other) as cache:
            cache.add(some(1))
        segment.rename(folder / other.digest / segment.name)
        with pytest.raises(DamagedFileError, match=r"another prior.*move it back"):
            ask(opened(folder, other), np.ones(1, np.uint64))

    def test_of_another_kind(self, folder, segment):
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(3)}, segment)
        self.refused(folder, segment, "damaged")

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
    def test_what_is_no_file(self, folder, segment, make):
        segment.unlink()
        make(segment)
        for read in (lambda: DecisionCache(folder).prior(), lambda: opened(folder).num_documents):
            with pytest.raises(DamagedFileError, match=rf"{segment}.*delete"):
                read()


class TestCachedPrior:
    @pytest.fixture
    def filled(self, folder, tokenizer):
        prior = Prior(make_llama(), tokenizer)
        with opened(folder, Identity.of(prior, EditPolicy())) as cache:
            cache.add(some(1))
        return prior

    def test_has_what_the_prior_has(self, folder, filled):
        cached = DecisionCache(folder).prior()
        assert isinstance(cached, CachedPrior)
        for name in (
            "vocab_size", "max_length", "pad_id", "fingerprint", "special_ids",
            "generation", "is_sharded",
        ):  # fmt: skip
            assert getattr(cached, name) == getattr(filled, name), name
        assert isinstance(cached, BasePrior)
        assert not isinstance(cached, Prior)
        assert cached.device == torch.device("cpu")
        assert cached.run_gathered(lambda: 5) == 5
        cached.make_idle_passes()
        cached.compile()
        assert "CachedPrior" in repr(cached)

    def test_cannot_score_or_be_swapped(self, folder, filled):
        cached = DecisionCache(folder).prior()
        with pytest.raises(
            ValueError, match=r"no tokenizer to find its text.*prior\.set_tokenizer"
        ):
            edit_tokens(cached, torch.ones(1, 4, dtype=torch.int64))
        cached.set_tokenizer(filled.tokenizer)
        with pytest.raises(ValueError, match="toedit apply --cache"):
            edit_tokens(cached, torch.ones(1, 4, dtype=torch.int64))
        with pytest.raises(ValueError, match="can't be swapped"):
            cached.swap(filled.model.state_dict())

    def test_the_tokenizer_must_be_the_priors(self, folder, filled):
        cached = DecisionCache(folder).prior()
        tokenizer = make_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
        cached.set_tokenizer(tokenizer)  # one more does no harm
        assert cached.tokenizer is tokenizer
        assert cached.special_ids == filled.special_ids
        other = make_tokenizer()
        other.backend_tokenizer.model = type(other.backend_tokenizer.model)()
        with pytest.raises(ValueError, match=r"tokenizer differs.*hash of its first \d+ tokens"):
            cached.set_tokenizer(other)

    def test_the_policy_must_be_the_same(self, folder, filled):
        cached = DecisionCache(folder).prior()
        assert Identity.of(cached, EditPolicy(seed=3)).digest == cached.identity.digest
        with pytest.raises(ValueError, match=r"top_k=8, now 64"):
            Identity.of(cached, EditPolicy(top_k=64))
        with pytest.raises(ValueError, match=r"another policy.*top_k=8, now 64"):
            DecisionCache(folder).prior(EditPolicy(top_k=64))
        assert DecisionCache(folder).prior(EditPolicy(seed=3)).identity == cached.identity

    def test_of_several(self, folder, filled):
        other = Prior(make_llama(seed=1), filled.tokenizer)
        cache = DecisionCache(folder)
        for prior, policy in ((other, EditPolicy()), (filled, EditPolicy(top_k=9))):
            cache.open(Identity.of(prior, policy))
            cache.add(some(1))
        assert cache.prior(EditPolicy(top_k=9)).fingerprint == filled.fingerprint
        with pytest.raises(ValueError, match=rf"several.*{other.fingerprint}.*prior="):
            cache.prior(EditPolicy())
        with pytest.raises(ValueError, match=r"several.*pass the policy"):
            cache.prior()
        found = cache.prior(EditPolicy(), prior=other.fingerprint[:6])
        assert found.fingerprint == other.fingerprint
        assert cache.prior(prior=found.identity.digest[:8]).identity == found.identity
        with pytest.raises(ValueError, match=r"no prior 'xyz', but .*prior "):
            cache.prior(prior="xyz")

    def test_of_none(self, folder):
        for cache in (DecisionCache(folder), DecisionCache()):
            with pytest.raises(ValueError, match=r"no decisions; fill it with `toedit apply"):
                cache.prior()

    def test_of_memory(self):
        cache = opened()
        assert cache.prior().identity == identity()
