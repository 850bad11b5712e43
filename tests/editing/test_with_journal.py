"""Editing with a journal: against editing without one, and against its own replay."""

import copy
from itertools import pairwise

import pytest
import reference
import torch
from conftest import likely_ids, make_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import record
from torch.utils.data import DataLoader
from trainees import AGGRESSIVE, counted_passes, documents, make_prior
from transformers import DataCollatorWithFlattening

from toedit_collate import EditPolicy, Journal, Prior, ToEditCollator, edit_tokens
from toedit_collate.editing.with_journal import edit_with_journal
from toedit_collate.tokens.token_batch import TokenBatch

POLICIES = {
    "half": EditPolicy(threshold=0.5, sampler="full", temperature=1.3),
    "others": EditPolicy(threshold=0.01, exclude_original=True),
    "below": EditPolicy(region="below", threshold=0.1, top_k=5),
    "drop": EditPolicy(threshold=2e-3, drop_below=1e-3, exclude_original=True),
    "all": EditPolicy(threshold=0.3, exclude_original=True, scope="all"),
}
LAYOUTS = ["left", "right", "packed"]
FIELDS = ["input_ids", "labels", "attention_mask", "position_ids", "changed", "dropped", "source"]
# Those of later generations are less sure of themselves, or they would drop nearly all tokens.
PRIORS = [Prior(make_llama(seed, sharpness=of)) for seed, of in enumerate([6.0, 1.0, 1.0])]
for _generation, _prior in enumerate(PRIORS):
    _prior.generation = _generation
POOL = likely_ids(PRIORS[0].model, 1, 40)[0].tolist()
TEXTS = documents(6)


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


def arrange(texts, layout, prompt=0):
    """Documents as a batch; the first `prompt` tokens of each have no label."""
    labels = [[-100 if i < prompt else t for i, t in enumerate(text)] for text in texts]
    if layout == "packed":
        rows = {
            "input_ids": texts,
            "labels": labels,
            "position_ids": [range(len(t)) for t in texts],
        }
        return {name: torch.tensor([[v for t in of for v in t]]) for name, of in rows.items()}
    T = max(map(len, texts))

    def pad(rows, value):
        padding = [[value] * (T - len(row)) for row in rows]
        pairs = zip(padding, rows, strict=True)
        return torch.tensor([p + r if layout == "left" else r + p for p, r in pairs])

    return {
        "input_ids": pad(texts, 2),
        "labels": pad(labels, -100),
        "attention_mask": pad([[1] * len(text) for text in texts], 0),
    }


def edit(journal, batch, *, prior=PRIORS[0], policy=AGGRESSIVE, step=0, num_sampled=0):
    names = ("input_ids", "attention_mask", "position_ids", "labels")
    source = TokenBatch.of(*(batch.get(name) for name in names))
    return edit_with_journal(
        prior, journal, source, policy=policy, step=step, num_sampled=num_sampled
    )


def rows_of(batch, values=None):
    """The documents of a batch, or other values of their tokens, as lists."""
    places = reference.documents_of(batch.input_ids, batch.attention_mask, batch.position_ids)
    values = batch.input_ids if values is None else values
    return [[int(values[place]) for place in document] for document in places]


def assert_same_result(ours, theirs):
    for name in FIELDS:
        got, expected = getattr(ours, name), getattr(theirs, name)
        assert (got is None) == (expected is None), name
        if expected is not None:
            assert got.dtype == expected.dtype, name
            assert torch.equal(got, expected), name


def test_a_mask_of_pairs_goes_with_a_journal(journal):
    batch = arrange([text[:12] for text in TEXTS[:2]], "right")
    batch["attention_mask"] = torch.ones(12, 12, dtype=torch.bool).tril()[None, None]
    plain = edit_tokens(PRIORS[0], **batch, policy=AGGRESSIVE)
    for _ in range(2):
        assert_same_result(edit(journal, batch).final, plain)
    edit(journal, batch, prior=PRIORS[1])
    with pytest.raises(ValueError, match="drop_above can't be combined with an attention_mask"):
        edit(journal, batch, prior=PRIORS[2], policy=POLICIES["drop"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", POLICIES)
def test_the_first_generation_is_the_edit_without_a_journal(journal, name, layout):
    batch = arrange([*TEXTS, TEXTS[0][:1], TEXTS[1][:2]], layout, prompt=2)
    plain = edit_tokens(PRIORS[0], **batch, policy=POLICIES[name])
    with counted_passes(PRIORS[0]) as passes:
        done = edit(journal, batch, policy=POLICIES[name])
        assert sum(passes) == 7 if name == "all" else 6  # of documents with a scored token
        passes.clear()
        again = edit(journal, batch, policy=POLICIES[name])
        assert passes == []
    for each in (done.final, again.final):
        assert_same_result(each, plain)
    assert plain.changed.any()
    assert plain.dropped.any() == (name == "drop")
    assert done.num_replayed == 0
    assert again.num_replayed == sum(map(len, TEXTS)) + (2 if name == "all" else 0)
    for mask in ("scored", "selected", "changed", "dropped"):
        assert getattr(done.edited, mask).sum() == getattr(plain, mask).sum()
    stats = journal.stats()[1]
    assert [stats[n] for n in ("scored", "selected", "changed", "dropped")] == [
        int(getattr(plain, n).sum()) for n in ("scored", "selected", "changed", "dropped")
    ]
    assert stats["changed_share"] == int(plain.changed.sum()) / int(plain.scored.sum())
    assert stats["documents"] == (7 if name == "all" else 6)


@st.composite
def runs(draw):
    """Batches of documents (some more than once), how each is laid out, and where prompts end."""
    spans = st.tuples(st.integers(0, 30), st.integers(1, 10))
    texts = [POOL[a : a + n] for a, n in draw(st.lists(spans, min_size=1, max_size=4))]
    batches = st.lists(st.sampled_from(texts), min_size=1, max_size=4)
    return draw(st.lists(st.tuples(batches, st.sampled_from(LAYOUTS)), min_size=1, max_size=3))


@settings(max_examples=25, deadline=None)
@given(run=runs(), name=st.sampled_from(["below", "drop"]), prompt=st.sampled_from([0, 0, 2]))
def test_each_generation_edits_what_the_last_one_made(tmp_path_factory, run, name, prompt):
    """Documents are given in any order and layout; replay and training rows are the reference's."""
    journal, policy = Journal(tmp_path_factory.mktemp("journal")), POLICIES[name]
    state = {}  # source -> (tokens, labels) after the last generation
    for generation, prior in enumerate(PRIORS, start=1):
        before = dict(state)
        for step, (texts, layout) in enumerate(run):
            done = edit(
                journal, arrange(texts, layout, prompt), prior=prior, policy=policy, step=step
            )
            for source in texts:
                labels = [-100 if i < prompt else t for i, t in enumerate(source)]
                ids, labels = before.get(tuple(source), (source, labels))
                alone = edit_tokens(
                    prior, torch.tensor([ids]), labels=torch.tensor([labels]), policy=policy,
                    generation=generation - 1,
                )  # fmt: skip
                (ids,), (labels,) = rows_of(alone), rows_of(alone, alone.labels)
                state[tuple(source)] = ids, labels
            assert rows_of(done.final) == [state[tuple(text)][0] for text in texts]
            labels = rows_of(done.final, done.final.labels)
            assert labels == [state[tuple(text)][1] for text in texts]
            assert not (done.final.changed & done.final.dropped).any()
            for source in texts:
                if generation in journal.generations:
                    assert journal.replay(source, generation) == state[tuple(source)][0]
    for generation in journal.generations[:-1]:
        for texts, layout in run:
            ids = [journal.replay(text, generation) for text in texts]
            if generation == 1:
                first = edit_tokens(PRIORS[0], **arrange(texts, layout, prompt), policy=policy)
                assert ids == rows_of(first)


def test_three_generations_did_something(journal):
    """That the property above is not one of nothing."""
    for generation, prior in enumerate(PRIORS, start=1):
        edit(journal, arrange(TEXTS, "right"), prior=prior, policy=POLICIES["drop"])
        stats = journal.stats()[generation]
        assert stats["changed"] > 5
        assert stats["dropped"] > 5
    states = [[journal.replay(text, n) for text in TEXTS] for n in range(4)]
    assert all(before != after for before, after in pairwise(states))


def test_only_new_documents_are_scored(journal):
    edit(journal, arrange(TEXTS[:2], "right"))
    plain = edit_tokens(PRIORS[0], **arrange(TEXTS, "packed"), policy=AGGRESSIVE)
    with counted_passes(PRIORS[0]) as passes:
        done = edit(journal, arrange(TEXTS, "packed"), num_sampled=9)
    assert passes == [4]
    assert done.num_replayed == sum(map(len, TEXTS[:2]))
    assert len(done.edited.input_ids) == 4
    assert done.edited.sample_logprob.shape == (9,)
    assert_same_result(done.final, plain)


def test_a_document_that_stands_in_a_batch_twice_is_edited_once(journal):
    with counted_passes(PRIORS[0]) as passes:
        done = edit(journal, arrange([TEXTS[0], TEXTS[1], TEXTS[0]], "left"))
    assert passes == [2]
    first, _, third = rows_of(done.final)
    assert first == third == journal.replay(TEXTS[0], 1) != TEXTS[0]
    assert journal.stats()[1]["documents"] == 2
    assert journal.stats()[1]["tokens"] == len(TEXTS[0]) + len(TEXTS[1])


def test_documents_without_a_scored_token_are_not_recorded(journal):
    batch = arrange(TEXTS, "right")
    batch["labels"][:] = -100
    with counted_passes(PRIORS[0]) as passes:
        done = edit(journal, batch)
    assert passes == []
    assert torch.equal(done.final.input_ids, batch["input_ids"])
    assert journal.generations == []
    edit(journal, arrange(TEXTS, "right"))
    assert edit(journal, batch).num_replayed == sum(map(len, TEXTS))


def test_labels_of_a_prompt_stay_out_when_it_was_edited_elsewhere(journal):
    """One edit per document: the labels that come with it later only say what counts."""
    edit(journal, arrange(TEXTS, "right"))
    batch = arrange(TEXTS, "right", prompt=5)
    done = edit(journal, batch)
    assert done.final.changed[:, :5].any()
    assert torch.equal(done.final.labels == -100, batch["labels"] == -100)
    kept = done.final.labels != -100
    assert torch.equal(done.final.labels[kept], done.final.input_ids[kept])


@pytest.mark.parametrize("labels", [True, False])
def test_batches_of_padding_and_without_labels(journal, labels):
    batch = arrange(TEXTS[:2], "right")
    if not labels:
        del batch["labels"]
    assert edit(journal, batch).final.changed.any()
    batch["attention_mask"][0] = 0
    assert edit(journal, batch).num_replayed == len(TEXTS[1])
    batch["attention_mask"][:] = 0
    done = edit(journal, batch)
    assert torch.equal(done.final.input_ids, batch["input_ids"])
    assert done.num_replayed == 0


def test_int32_ids_come_back_as_they_are(journal):
    batch = arrange(TEXTS, "right")
    expected = edit(journal, batch).final.input_ids
    batch["input_ids"] = batch["input_ids"].int()
    got = edit(journal, batch).final.input_ids
    assert got.dtype == torch.int32
    assert torch.equal(got.long(), expected)


@pytest.mark.parametrize("redraw", ["epoch", "never"])
def test_a_document_is_drawn_for_once_as_in_the_first_epoch(journal, redraw):
    policy = POLICIES["below"].replace(redraw=redraw)
    ids = torch.tensor([TEXTS[0]])
    batch = {"input_ids": ids, "attention_mask": None, "position_ids": None, "labels": None}
    first, again = (edit(journal, batch, policy=policy).final.input_ids for _ in range(2))
    expected = edit_tokens(PRIORS[0], ids, policy=policy, epoch=0).input_ids
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)
    assert not torch.equal(first, ids)


@pytest.mark.parametrize(
    ("prior", "policy", "message"),
    [
        (Prior(make_llama(7)), AGGRESSIVE, "generation 1 .* made with another prior"),
        (PRIORS[0], AGGRESSIVE.replace(top_k=7), "made with top_k=8 in its policy, but .* has 7"),
        (PRIORS[0], AGGRESSIVE.replace(redraw="never"), "redraw='epoch' in its policy"),
    ],
)
def test_another_prior_or_policy_is_refused(journal, prior, policy, message):
    edit(journal, arrange(TEXTS, "right"))
    with pytest.raises(ValueError, match=message):
        edit(journal, arrange(TEXTS, "right"), prior=prior, policy=policy)


def test_an_edit_goes_on_after_the_journal_was_closed(journal):
    with journal:
        edit(journal, arrange(TEXTS[:2], "right"))
    edit(journal, arrange(TEXTS, "right"))
    assert journal.stats()[1]["documents"] == len(TEXTS)


def test_the_edit_of_another_document_is_refused(journal):
    """As if two documents had one key."""
    record(journal, TEXTS[0], {1: 7}, prior=PRIORS[0].fingerprint, policy=AGGRESSIVE.record())
    journal._tables[1]._changes.values[0, 1] += 1  # the old token
    with pytest.raises(ValueError, match="generation 1: its changes belong to another document"):
        edit(journal, arrange(TEXTS, "right"))


def test_as_many_tokens_as_there_are_may_go(journal):
    """drop_below of nearly everything: first tokens stay, and the batch is padded anew."""
    policy = EditPolicy(region="none", drop_below=0.999)
    for layout in LAYOUTS:
        batch = arrange(TEXTS, layout)
        plain = edit_tokens(PRIORS[0], **batch, policy=policy)
        assert plain.dropped.sum() > 0.9 * (plain.scored.sum())
        assert_same_result(edit(journal, batch, policy=policy).final, plain)


class TestCollator:
    def collator(self, tokenizer, journal, policy=AGGRESSIVE, **arguments):
        return ToEditCollator(make_prior(tokenizer), policy, journal=journal, **arguments)

    def rows(self, batch):
        pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        return [row[mask.bool()].tolist() for row, mask in pairs]

    def test_a_path_is_not_a_journal(self, prior, tmp_path):
        with pytest.raises(TypeError, match=r"journal must be a Journal, got PosixPath; write Jo"):
            ToEditCollator(prior, journal=tmp_path)

    def test_stats_count_what_was_edited_and_what_was_replayed(self, tokenizer, journal):
        collator = self.collator(tokenizer, journal)
        first = self.rows(collator(TEXTS))
        once = collator.stats
        assert once["replayed"] == 0
        assert once["changed"] > 0
        assert self.rows(collator(TEXTS)) == first
        twice = collator.stats
        num_tokens = sum(map(len, TEXTS))
        assert twice["batches"] == 2
        assert twice["tokens"] == 2 * num_tokens
        assert twice["replayed"] == num_tokens
        assert twice["replayed_share"] == 0.5
        for name in ("scored", "selected", "changed", "selected_share", "prior_perplexity"):
            assert twice[name] == once[name]
        recorded = journal.stats()[1]
        for name in ("scored", "selected", "changed", "selected_share", "changed_share"):
            assert recorded[name] == twice[name]

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_first_epoch_as_without_a_journal_later_ones_alike(self, tokenizer, journal, side):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.padding_side = side
        plain = self.rows(self.collator(tokenizer, None)(TEXTS))
        collator = self.collator(tokenizer, journal)
        for epoch in range(3):
            collator.set_epoch(epoch)
            texts = TEXTS if epoch != 1 else TEXTS[::-1]
            expected = plain if epoch != 1 else plain[::-1]
            assert self.rows(collator(texts)) == expected
        assert plain != TEXTS

    @pytest.mark.parametrize("name", ["others", "drop"])
    def test_flattened_rows(self, tokenizer, journal, name):
        def base():
            return DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)

        features = [{"input_ids": text} for text in TEXTS]
        plain = self.collator(tokenizer, None, POLICIES[name], base_collator=base())(features)
        collator = self.collator(tokenizer, journal, POLICIES[name], base_collator=base())
        for _ in range(2):
            batch = collator(features)
            assert batch.keys() == plain.keys()
            assert "cu_seq_lens_q" in batch
            for key in plain:
                same = torch.as_tensor(batch[key]) == torch.as_tensor(plain[key])
                assert same.all(), key
            borders = batch["cu_seq_lens_q"].tolist()
            rows = [batch["input_ids"][0, a:b].tolist() for a, b in pairwise(borders)]
            assert rows == [journal.replay(text, 1) for text in TEXTS]
        assert rows != TEXTS

    def test_around_another_base_keeps_the_journal(self, tokenizer, journal):
        collator = self.collator(tokenizer, journal)
        first = self.rows(collator(TEXTS))
        other = collator.around(collator.base_collator)
        assert other.journal is journal
        assert self.rows(other(TEXTS)) == first
        assert collator.stats["replayed"] == sum(map(len, TEXTS))

    @pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
    def test_workers_collate_and_this_process_records(self, tokenizer, journal, method):
        expected = self.rows(self.collator(tokenizer, None)(TEXTS))
        collator = self.collator(tokenizer, journal)
        loader = DataLoader(
            TEXTS, 2, collate_fn=collator, num_workers=2, multiprocessing_context=method
        )
        for _ in range(2):
            assert [row for batch in loader for row in self.rows(batch)] == expected
            journal.flush()
        assert collator.stats["replayed"] == sum(map(len, TEXTS))
        assert journal.stats()[1]["documents"] == len(TEXTS)
        assert [journal.replay(text, 1) for text in TEXTS] == expected

    def test_protect_sees_documents_as_rows(self, tokenizer, journal):
        seen = []

        def even(input_ids, tokenizer):
            seen.append(input_ids)
            return input_ids % 2 == 0

        policy = AGGRESSIVE.replace(protect=even)
        plain = self.rows(self.collator(tokenizer, None, policy)(TEXTS))
        collator = self.collator(tokenizer, journal, policy)
        assert self.rows(collator(TEXTS)) == plain != TEXTS
        assert torch.equal(*seen)
        assert [[t for t in row if t % 2 == 0] for row in TEXTS] == [
            [new for t, new in zip(text, row, strict=True) if t % 2 == 0]
            for text, row in zip(TEXTS, plain, strict=True)
        ]
        with pytest.raises(
            ValueError, match=r"made with protect='.*even \(source .*in its policy, but"
        ):
            self.collator(tokenizer, journal)(TEXTS)["input_ids"]

    def test_another_function_of_the_same_name_is_refused(self, tokenizer, journal):
        def protect(input_ids, tokenizer):
            return input_ids % 2 == 0

        even = AGGRESSIVE.replace(protect=protect)

        def protect(input_ids, tokenizer):
            return input_ids % 2 == 1

        self.collator(tokenizer, journal, even)(TEXTS)["input_ids"]
        with pytest.raises(
            ValueError, match=r"protect='.*protect \(source .*but this run has '.*source"
        ):
            self.collator(tokenizer, journal, AGGRESSIVE.replace(protect=protect))(TEXTS).to("cpu")
        self.collator(tokenizer, journal, even)(TEXTS)["input_ids"]

    def test_a_swap_begins_the_next_generation(self, tokenizer, journal):
        collator = self.collator(tokenizer, journal)
        first = self.rows(collator(TEXTS))
        collator.prior.swap(make_llama(1).state_dict())
        second = self.rows(collator(TEXTS))
        assert journal.generations == [1, 2]
        for number, rows in enumerate([TEXTS, first, second]):
            assert [journal.replay(text, number) for text in TEXTS] == rows
        assert first != second
