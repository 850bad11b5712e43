"""Two tokenizations of the same bytes, against the slow ways of tests/reference.py."""

from __future__ import annotations

import functools
import itertools
import pickle

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_pairs import NAMES, PAIRS, TEXTS, byte_level_raw, dressed, make
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from toedit_collate.tokens.alignment.byte_tokenizer import ByteTokenizer, complete
from toedit_collate.tokens.alignment.document import Aligner
from toedit_collate.tokens.alignment.groups import Groups, first_tokens

BYTES = st.lists(
    st.sampled_from(
        [*"aé你😀 \n".encode(), 0xFF, 0xC0, 0xED, 0xA0, 0xF4, 0x90, *b"the1"]
    ),
    max_size=12,
).map(bytes)  # fmt: skip


WITHOUT_PREFIX = [
    pair for pair in PAIRS if not any("piece" in name and "never" not in name for name in pair)
]


@functools.cache
def both(name: str, whose: str = "trainee's") -> tuple:
    return make(name), ByteTokenizer(make(name), whose)


@functools.cache
def aligner(trainee: str, prior: str) -> Aligner:
    return Aligner(both(trainee)[1], both(prior, "prior's")[1])


@functools.cache
def slow_pair(trainee: str, prior: str) -> reference.SlowAligned:
    own = both(trainee)[1]
    return reference.SlowAligned(None, make(prior), make(trainee), own.first)


def ids_of(tokenizer, text: str) -> np.ndarray:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return np.array([tokenizer.bos_token_id, *ids])


def spans(pieces) -> list[tuple[int, int]]:
    """Where each piece begins and ends, of those that are text."""
    ends = list(itertools.accumulate(len(piece or b"") for piece in pieces))
    return [(a, b) for a, b in itertools.pairwise([0, *ends]) if a < b]


class TestBytes:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("text", TEXTS)
    def test_what_it_encodes_is_what_the_tokenizer_does_in_the_middle_of_a_text(self, name, text):
        tokenizer, own = both(name)
        slow = reference.SlowAligned(None, tokenizer, tokenizer)
        data = TEXTS[text].encode().replace("▁".encode(), b"_")
        assert own.encode(data) == slow.encode(tokenizer, data.decode())
        assert own.decode(own.encode(data)) == data
        assert own.bytes[: len(tokenizer)] == slow.trainee_bytes

    @pytest.mark.parametrize("name", NAMES)
    @given(data=BYTES)
    @settings(max_examples=60, deadline=None)
    def test_any_bytes_come_back(self, name, data):
        own = both(name)[1]
        assert own.decode(own.encode(data)) == data

    @given(data=BYTES)
    @settings(deadline=None)
    def test_completed_characters_hold_the_bytes(self, data):
        text, origin = complete(data)
        assert len(text.encode()) == len(origin)
        assert bytes(byte for byte in origin if byte >= 0) == data

    @pytest.mark.parametrize("name", ["byte-level", "coarse", "digits"])
    @pytest.mark.parametrize("text", ["emoji", "CJK", "combining marks"])
    def test_a_document_cut_inside_a_character_keeps_its_tokens(self, name, text):
        tokenizer, own = both(name)
        ids = ids_of(tokenizer, TEXTS[text])[1:].tolist()
        for cut in range(1, len(ids)):
            assert own.encode(own.decode(ids[:cut])) == ids[:cut]
            assert own.encode(own.decode(ids[cut:])) == ids[cut:]

    @pytest.mark.parametrize("name", ["byte-level", "coarse", "digits", "swapped"])
    def test_each_token_is_the_first_of_its_own_bytes(self, name):
        """So the same tokenizer on both sides has groups of one."""
        own = both(name)[1]
        first = first_tokens(own, own)
        expected = [-1 if one is None else number for number, one in enumerate(own.bytes)]
        assert first.tolist() == expected

    def test_it_goes_to_workers(self):
        own = both("sentencepiece-first")[1]
        there = pickle.loads(pickle.dumps(own))
        assert there.encode(b"the old bridge \xe4") == own.encode(b"the old bridge \xe4")


def _with(**parts) -> PreTrainedTokenizerFast:
    raw = byte_level_raw(300)
    for name, part in parts.items():
        setattr(raw, name, part)
    return dressed(raw)


class TestRefused:
    @pytest.mark.parametrize(
        ("tokenizer", "message"),
        [
            (_with(normalizer=normalizers.Lowercase()), "Lowercase changes the text"),
            (
                _with(normalizer=normalizers.Sequence([normalizers.NFKC()])),
                "NFKC changes the text",
            ),
            (_with(pre_tokenizer=pre_tokenizers.Whitespace()), "Whitespace removes text"),
            (
                _with(
                    pre_tokenizer=pre_tokenizers.Sequence(
                        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()]
                    )
                ),
                "WhitespaceSplit removes text",
            ),
            (
                PreTrainedTokenizerFast(
                    tokenizer_object=Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
                ),
                "a WordPiece tokenizer",
            ),
            (
                PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", 0.0)]))),
                "without tokens for single bytes",
            ),
            (object(), "not a fast tokenizer"),
        ],
    )
    def test_other_kinds_by_name(self, tokenizer, message):
        with pytest.raises(ValueError, match=rf"prior's tokenizer .*{message}.*own tokenizer"):
            ByteTokenizer(tokenizer, "prior's")


class TestDocuments:
    @pytest.mark.parametrize(("trainee", "prior"), WITHOUT_PREFIX)
    @pytest.mark.parametrize("text", TEXTS)
    def test_chains(self, trainee, prior, text):
        pair, slow = aligner(trainee, prior), slow_pair(trainee, prior)
        ids = ids_of(make(trainee), TEXTS[text])
        found = pair.align(ids)
        assert found.prior_tokens.tolist() == slow.both_sides(ids.tolist())[0]
        chains = {
            place: (int(found.begin[place]), int(found.length[place]))
            for place in np.flatnonzero(found.begin > 0).tolist()
        }
        assert chains == slow.chains(ids.tolist())
        assert chains

    @pytest.mark.slow
    @pytest.mark.parametrize(("trainee", "prior"), PAIRS)
    @pytest.mark.parametrize("text", TEXTS)
    def test_groups_of_chains(self, trainee, prior, text):
        pair, slow = aligner(trainee, prior), slow_pair(trainee, prior)
        ids = ids_of(make(trainee), TEXTS[text].replace("▁", "_"))
        found = pair.align(ids)
        assert found.agrees
        assert (found.begin >= 0).sum() >= 3
        groups = iter(found.groups)
        for place in np.flatnonzero(found.length > 1):
            begin, length = found.begin[place], found.length[place]
            covered = pair.prior.decode(found.prior_tokens[begin : begin + length - 1].tolist())
            expected = [u for u, x in enumerate(slow.table(covered)) if x == ids[place]]
            assert next(groups).tolist() == expected
        assert next(groups, None) is None

    @pytest.mark.parametrize(("trainee", "prior"), PAIRS)
    def test_groups_of_one(self, trainee, prior):
        pair, slow = aligner(trainee, prior), slow_pair(trainee, prior)
        first = first_tokens(pair.trainee, pair.prior, special=pair.special)
        assert first.tolist() == slow.table(b"")
        groups = Groups.of(first, len(pair.trainee.bytes))
        for token in range(len(pair.trainee.bytes)):
            members = groups.members[groups.start[token] : groups.start[token + 1]]
            assert members.tolist() == [u for u, x in enumerate(slow.table(b"")) if x == token]

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("text", TEXTS)
    def test_the_same_tokenizer_aligns_everything(self, name, text):
        pair = aligner(name, name)
        ids = ids_of(make(name), TEXTS[text])
        found = pair.align(ids)
        assert found.prior_tokens.tolist() == ids.tolist()
        is_text = pair.trainee.lengths[ids] > 0
        assert (found.begin[is_text] == np.flatnonzero(is_text)).all()
        assert (found.length == is_text).all()

    def test_special_tokens_cut_the_text(self):
        pair = aligner("byte-level", "sentencepiece-first")
        trainee, prior = make("byte-level"), make("sentencepiece-first")
        text = "<|bos|><|im_start|>user\nthe fox<|im_end|>the dog<|eos|>"
        ids = np.array(trainee(text)["input_ids"])
        found = pair.align(ids)
        shown = prior.convert_ids_to_tokens(found.prior_tokens.tolist())
        assert shown[0] == "<s>"
        assert shown[-1] == "</s>"
        assert not any("im_" in token for token in shown)
        # A prefix is put at the beginning of the text, not after a marker in its middle.
        assert pair.prior.decode(found.prior_tokens[1:-1].tolist()) == b" user\nthe foxthe dog"
        assert (found.begin[pair.trainee.lengths[ids] < 0] == -1).all()

    def test_bytes_that_do_not_agree(self):
        """SentencePiece reads its own sign as a blank."""
        pair = aligner("byte-level", "sentencepiece-first")
        found = pair.align(ids_of(make("byte-level"), "the ▁ fox"))
        assert not found.agrees
        assert (found.begin == -1).all()
        assert (found.length == 0).all()

    def test_only_special_tokens(self):
        pair = aligner("byte-level", "coarse")
        found = pair.align(np.array([0, 0]) + make("byte-level").bos_token_id)
        assert found.prior_tokens.tolist() == [make("coarse").bos_token_id] * 2
        assert (found.begin == -1).all()
