"""`inspect_edits`: its edits are those of `edit_tokens`, and one pass serves all policies."""

import re

import numpy as np
import pytest
import torch
from conftest import TEXT, likely_ids, make_llama, make_tokenizer
from tokenizer_pairs import make

from toedit_collate import EditPolicy, Prior, edit_tokens, inspect_edits
from toedit_collate.inspection.inspecting import named_policies
from toedit_collate.inspection.terminal import as_text

POLICIES = {
    "above": EditPolicy(threshold=0.3, top_k=5),
    "hot": EditPolicy(threshold=0.2, sampler="top_p", top_p=0.9, temperature=1.5),
    "below": EditPolicy(region="below", threshold=0.05, scope="all"),
    "dropping": EditPolicy(threshold=0.5, drop_below=0.01, exclude_original=True),
    "first draws": EditPolicy.distill(num_draws=3),
}


@pytest.fixture(scope="module")
def prior():
    return Prior(make_llama(), make_tokenizer())


def rows(count=12):
    """Documents of various lengths; the first half of each has no label."""
    ids = likely_ids(make_llama(), count, 40, seed=3)
    lengths = [5 + 3 * (i % 11) for i in range(count)]
    return [
        {
            "input_ids": one[:length].tolist(),
            "assistant_masks": [i >= length // 2 for i in range(length)],
        }
        for one, length in zip(ids, lengths, strict=True)
    ]


def in_order(seen):
    """The documents in the order of the rows, "row 3 (from 0), from token 10"."""
    return sorted(seen.documents, key=lambda one: [int(n) for n in re.findall(r"\d+", one.name)])


def edited_one_by_one(prior, row, policy):
    ids = torch.tensor([row["input_ids"]])
    labels = torch.where(torch.tensor([row["assistant_masks"]]), ids, -100)
    return edit_tokens(prior, ids, labels=labels, policy=policy, return_logprob=True)


@pytest.mark.parametrize("name", POLICIES)
def test_the_edits_are_those_of_edit_tokens(prior, name):
    data = rows()
    seen = inspect_edits(prior, data, POLICIES, batch_tokens=64)
    assert seen.num_documents == len(data) == len(seen.documents)
    for row, document in zip(data, in_order(seen), strict=True):
        expected = edited_one_by_one(prior, row, POLICIES[name])
        edit = document.edits[name]
        after = edit.after[edit.after >= 0].tolist()
        if POLICIES[name].target == "labels":  # the inputs stay
            assert expected.input_ids[0].tolist() == row["input_ids"]
            one = POLICIES[name].replace(num_draws=1, target="both")
            expected = edited_one_by_one(prior, row, one)
        assert after == expected.input_ids[0].tolist()
        assert edit.selected.tolist() == expected.selected[0].tolist()
        assert edit.scored.tolist() == expected.scored[0].tolist()
        assert edit.removed == expected.dropped[0].nonzero().flatten().tolist()
        np.testing.assert_allclose(
            document.probability, expected.logprob[0].exp().numpy(), rtol=1e-4
        )
    assert sum(int(d.edits[name].selected.sum()) for d in seen.documents) > 0


def test_one_pass_serves_all_policies(prior, monkeypatch):
    passes = []
    predict = Prior.predict
    monkeypatch.setattr(Prior, "predict", lambda *args: passes.append(1) or predict(*args))
    inspect_edits(prior, rows(), POLICIES, batch_tokens=10_000)
    assert len(passes) == 1


def test_counts_are_those_of_the_documents(prior):
    seen = inspect_edits(prior, rows(), POLICIES)
    for name, tally in seen.tallies.items():
        edits = [d.edits[name] for d in seen.documents]
        assert tally.of(None, "selected") == sum(int(e.selected.sum()) for e in edits)
        assert tally.of(None, "changed") == sum(len(e.changed) for e in edits) > 0
        assert tally.of(None, "removed") == sum(len(e.removed) for e in edits)
        forms = ("digits", "punctuation", "whitespace", "word beginnings", "word pieces",
                 "capitalised words", "template")  # fmt: skip
        for column in ("tokens", "selected", "changed", "removed", "protected"):
            assert sum(tally.of(kind, column) for kind in forms) == tally.of(None, column)
    labelled = sum(sum(row["assistant_masks"][1:]) for row in rows())
    assert seen.tallies["above"].of(None, "tokens") == labelled
    assert seen.tallies["below"].of(None, "tokens") == sum(len(r["input_ids"]) - 1 for r in rows())
    assert seen.probabilities.total == int(seen.probabilities.bins.sum()) == labelled


def test_candidates_are_the_priors_most_probable_tokens(prior):
    seen = inspect_edits(prior, rows(4), POLICIES)
    checked = 0
    for document in seen.documents:
        logits = prior.model(input_ids=torch.tensor([document.ids])).logits[0].double()
        for place, found in document.candidates.items():
            p = logits[place - 1].softmax(-1)
            p[len(prior.tokenizer) :] = 0  # the vocabulary's padding has no text
            best = p.topk(5)
            assert [token for token, _ in found] == best.indices.tolist()
            assert [chance for _, chance in found] == pytest.approx(best.values.tolist(), rel=1e-3)
            checked += 1
    assert checked > 20


def test_a_protection_is_seen(prior):
    def protect(input_ids, tokenizer):
        return input_ids % 2 == 0

    policies = {"free": POLICIES["above"], "held": POLICIES["above"].replace(protect=protect)}
    seen = inspect_edits(prior, rows(), policies)
    free, held = seen.tallies["free"], seen.tallies["held"]
    assert held.of(None, "protected") > free.of(None, "protected") == 0
    assert held.of(None, "selected") + held.of(None, "protected") == free.of(None, "selected")
    assert re.search(rf"^held .* {held.of(None, 'protected')} ", str(seen), re.MULTILINE)


def test_documents_with_the_most_edits_and_a_limit(prior):
    by_edits = inspect_edits(prior, rows(), POLICIES, keep=3)
    counts = [d.num_edits for d in by_edits.documents]
    assert len(counts) == 3
    assert counts == sorted(counts, reverse=True)
    assert by_edits.num_documents == 12
    first = inspect_edits(prior, rows(), limit=5)
    assert [d.name for d in in_order(first)] == [f"row {i} (from 0)" for i in range(5)]


def test_long_documents_are_cut_as_in_training(prior):
    seen = inspect_edits(prior, [{"input_ids": [7] * 25}], max_length=10)
    assert [len(d.ids) for d in in_order(seen)] == [10, 10, 5]
    assert in_order(seen)[1].name == "row 0 (from 0), from token 10"


def test_as_text_and_page(prior):
    texts = [{"text": TEXT}, {"text": "</script><b>1 & 2</b>"}]
    seen = inspect_edits(prior, rows() + texts, ["threshold=0.01 top_k=50"])
    text = str(seen)
    assert "threshold=0.01 top_k=50" in text
    assert "word beginnings" in text
    assert "\33[" not in text
    assert "\33[" in as_text(seen, color=True)
    page = seen.to_html()
    assert page.count("</script>") == 2  # those of the page itself
    assert "Content-Security-Policy" in page
    assert "srcdoc=" in seen._repr_html_()


def test_a_prior_without_a_tokenizer():
    with pytest.raises(ValueError, match=r"the prior has no tokenizer.*Prior\(model, tokenizer\)"):
        inspect_edits(Prior(make_llama()), [{"input_ids": [5, 6]}])


def test_policies_by_name():
    assert list(named_policies([EditPolicy(), EditPolicy(top_k=3)])) == ["paper", "top_k=3"]


def test_no_policies():
    with pytest.raises(ValueError, match=r"policies is empty; name at least one"):
        named_policies([])


def test_a_prior_with_another_tokenizer():
    model = make_llama(vocab_size=len(make("digits")), max_position_embeddings=512)
    aligned = Prior(model, make("digits")).aligned_to(make("coarse"))
    text = f"{TEXT} 12 34 56 78"
    ids = [
        make("coarse").bos_token_id,
        *make("coarse")(text, add_special_tokens=False)["input_ids"],
    ]
    policy = EditPolicy(threshold=0.02, top_k=20, temperature=2.0)
    seen = inspect_edits(aligned, [{"input_ids": ids}], {"one": policy})
    expected = edit_tokens(aligned, torch.tensor([ids]), policy=policy)
    assert expected.selected.any()
    (document,) = seen.documents
    assert document.edits["one"].after.tolist() == expected.input_ids[0].tolist()
    assert document.edits["one"].selected.tolist() == expected.selected[0].tolist()
    assert all(0 <= p <= 1.0001 for found in document.candidates.values() for _, p in found)
    assert seen.to_html()


def test_what_would_steer_the_terminal_is_shown_instead():
    from toedit_collate.inspection.terminal import _HARMLESS

    shown = "a\x1b[31mb\u202ec\x9bd\n\te".translate(_HARMLESS)
    assert shown == "a\u241b[31mb\ufffdc\ufffdd\n\te"
