"""`EditPolicy.context`: texts of a row, or answers, that the prior scores by themselves."""

import pytest
import reference
import torch
from conftest import likely_ids, make_llama
from tokenizer_pairs import byte_level_raw, dressed
from tokenizers.processors import TemplateProcessing
from torch.utils.data import DataLoader

from toedit_collate import (
    DecisionCache,
    EditPolicy,
    Journal,
    Prior,
    ToEditCollator,
    edit_tokens,
    inspect_edits,
)
from toedit_collate.editing.with_journal import edit_with_journal
from toedit_collate.prior.aligned import AlignedPrior
from toedit_collate.stores.cache import Identity
from toedit_collate.tokens.documents import Documents
from toedit_collate.tokens.token_batch import TokenBatch

POLICY = EditPolicy(threshold=0.5, temperature=1.5, sampler="full", protect_special=False)
TEXT, ANSWER = POLICY.replace(context="text"), POLICY.replace(context="answer")


def tokenizer_of(*, adds_bos: bool):
    raw = byte_level_raw(300)
    found = dressed(raw, chat=False)
    if adds_bos:
        bos = (found.bos_token, found.bos_token_id)
        found._tokenizer.post_processor = TemplateProcessing(
            single=f"{bos[0]} $A", special_tokens=[bos]
        )
    return found


@pytest.fixture(scope="module", params=[False, True], ids=["no BOS", "adds BOS"])
def case(request):
    """A prior, and rows that begin in the middle of a text and hold several, with labels."""
    tokenizer = tokenizer_of(adds_bos=request.param)
    model = make_llama()
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    ids = likely_ids(model, 3, 40, low=0) % (len(tokenizer) - 3)
    ids[0, 12], ids[0, 30], ids[1, 0], ids[2, 20], ids[2, 21] = eos, eos, bos, eos, bos
    labels = ids.clone()
    labels[0, :9] = labels[0, 15:25] = labels[1, :5] = -100
    return Prior(model, tokenizer), ids, labels, bos if request.param else None


@pytest.mark.parametrize("policy", [TEXT, ANSWER], ids=["text", "answer"])
def test_the_edit_is_the_references(case, policy):
    prior, ids, labels, bos = case
    forbidden = [i for i in range(prior.head.vocab_size) if i >= len(prior.tokenizer)]
    expected = reference.edit(
        prior.model, ids, policy, labels=labels, bos_id=bos, forbidden=forbidden,
        eos_id=prior.tokenizer.eos_token_id,
    )  # fmt: skip
    result = edit_tokens(prior, ids, labels=labels, policy=policy)
    assert torch.equal(result.input_ids, expected[0])
    assert torch.equal(result.selected, expected[1])
    whole = edit_tokens(prior, ids, labels=labels, policy=POLICY)
    assert not torch.equal(result.selected, whole.selected)
    first = 13 if policy.context == "text" else 9
    assert not result.scored[0, first]
    assert whole.scored[0, first]


@pytest.mark.parametrize("policy", [TEXT, ANSWER], ids=["text", "answer"])
def test_a_cache_and_a_journal_keep_contexts_apart(case, policy, tmp_path):
    prior, ids, labels, bos = case
    plain = edit_tokens(prior, ids, labels=labels, policy=policy.replace(top_k=9, sampler="top_k"))
    policy = policy.replace(top_k=9, sampler="top_k")
    cache = DecisionCache(tmp_path / "cache")
    for other in (policy.replace(context="document"), policy, policy):
        cached = edit_tokens(prior, ids, labels=labels, policy=other, cache=cache)
    assert torch.equal(plain.input_ids, cached.input_ids)
    assert ("after" in Identity.of(prior, policy).prior) == (bos is not None)
    # The same tokens are editable, but another token begins an answer.
    special = policy.replace(protected_token_ids=(int(ids[0, 11]),))
    longer = labels.clone()
    longer[0, 11] = -100
    for some in (labels, longer):
        cached = edit_tokens(prior, ids, labels=some, policy=special, cache=cache)
    again = edit_tokens(prior, ids, labels=longer, policy=special)
    assert torch.equal(cached.input_ids, again.input_ids)
    assert torch.equal(cached.scored, again.scored)

    journal = Journal(tmp_path / "journal")
    source = TokenBatch.of(ids, None, None, labels)
    for _ in range(2):
        final = edit_with_journal(prior, journal, source, policy=policy, step=0).final
        assert torch.equal(final.input_ids, plain.input_ids)
    with pytest.raises(ValueError, match="context" if bos is None else "another prior"):
        edit_with_journal(prior, journal, source, policy=POLICY, step=0)


def test_rows_of_one_text_that_begins_with_a_bos_are_not_changed(case):
    prior, ids, _, _ = case
    rows = ids[1:2]
    for policy in (POLICY, TEXT):
        result = edit_tokens(prior, rows, policy=policy)
        assert torch.equal(result.input_ids, edit_tokens(prior, rows, policy=POLICY).input_ids)


def test_what_cannot_work_is_refused(case):
    prior, ids, _, bos = case
    with pytest.raises(ValueError, match=r"context='answer' needs labels"):
        edit_tokens(prior, ids, policy=ANSWER)
    with pytest.raises(ValueError, match=r"context='text' needs the eos_token"):
        edit_tokens(Prior(prior.model), ids, policy=TEXT)
    with pytest.raises(ValueError, match=r"context='answer', scope='all' can't be combined"):
        EditPolicy(context="answer", scope="all")
    with pytest.raises(ValueError, match=r"contexts 'document' and 'text'"):
        inspect_edits(prior, ["some text"], [POLICY, TEXT])
    full = ids[:1].repeat(1, 7)[:, : prior.max_length]
    full[full == prior.tokenizer.eos_token_id] = 9
    if bos is None:
        edit_tokens(prior, full, policy=TEXT)
    else:
        with pytest.raises(ValueError, match=r"a text of 256 tokens and .*=255 or less"):
            edit_tokens(prior, full, policy=TEXT)


def test_an_empty_document_gets_no_token():
    documents, tokens, place = Documents.of_lengths([2, 0, 1]).put_before(
        torch.tensor([7, 8, 0]), 0
    )
    assert documents.lengths == [3, 0, 1]
    assert tokens.tolist() == [0, 7, 8, 0]
    assert place.tolist() == [1, 2, 3]


class TestAligned:
    """A prior with another tokenizer reads its BOS first where its tokenizer adds one."""

    @pytest.fixture(scope="class")
    def pair(self):
        own, other = tokenizer_of(adds_bos=True), dressed(byte_level_raw(420), chat=False)
        model = make_llama(3, vocab_size=len(own), sharpness=6.0, max_position_embeddings=128)
        aligned = Prior(model, own).aligned_to(other)
        assert isinstance(aligned, AlignedPrior)
        first = aligned.aligner.trainee.first
        return aligned, other, reference.SlowAligned(model, own, other, first)

    def test_scores_are_the_references(self, pair):
        aligned, trainee, slow = pair
        text = trainee("The fox 12 + 345 = 357 runs, and the old one returns x * 2")["input_ids"]
        for ids in (text, [trainee.bos_token_id, *text]):
            exact = edit_tokens(aligned, torch.tensor([ids]), return_logprob=True).logprob[0]
            expected = [slow.logprob(ids, position) for position in slow.chains(ids)]
            found = exact[list(slow.chains(ids))]
            torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=3e-5)
            assert int((~exact.isnan()).sum()) == len(expected) > 10
            assert exact[0].isnan()

    def test_texts_of_a_row_are_scored_as_alone(self, pair):
        aligned, trainee, _ = pair
        texts = [[*trainee(t)["input_ids"], trainee.eos_token_id] for t in ("the fox 12", "x * 2")]
        row = torch.tensor([texts[0] + texts[1]])
        together = edit_tokens(aligned, row, policy=TEXT, return_logprob=True).logprob[0]
        alone = [
            edit_tokens(aligned, torch.tensor([one]), policy=POLICY, return_logprob=True).logprob[0]
            for one in texts
        ]
        torch.testing.assert_close(together, torch.cat(alone), equal_nan=True)

    def test_the_bos_takes_one_of_the_positions(self, pair, caplog):
        aligned, trainee, _ = pair
        ids = trainee("x y z " * 60)["input_ids"]
        result = edit_tokens(aligned, torch.tensor([ids]), return_logprob=True)
        bos = edit_tokens(
            aligned, torch.tensor([[trainee.bos_token_id, *ids]]), return_logprob=True
        )
        torch.testing.assert_close(result.logprob[0, 1:], bos.logprob[0, 2:], equal_nan=True)
        assert result.logprob[0, -1].isnan()

    def test_another_tokenizer_without_a_bos_is_another_prior(self, pair):
        aligned, trainee, _ = pair
        model = aligned.unaligned.model
        without = Prior(model, tokenizer_of(adds_bos=False)).aligned_to(trainee)
        assert without.fingerprint != aligned.fingerprint

    def test_workers_align_the_pieces(self, pair, monkeypatch):
        aligned, trainee, _ = pair
        text = [*trainee("the fox 12")["input_ids"], trainee.eos_token_id]
        rows = [{"input_ids": text * 2, "labels": text * 2}]
        collator = ToEditCollator(aligned, TEXT, tokenizer=trainee)
        (batch,) = DataLoader(rows, collate_fn=collator, num_workers=1)
        monkeypatch.setattr(type(aligned.aligner), "align", None)  # must not be called here
        alone = batch["input_ids"]
        monkeypatch.undo()
        expected = edit_tokens(aligned, torch.tensor([text * 2]), policy=TEXT)
        assert torch.equal(alone, expected.input_ids)
