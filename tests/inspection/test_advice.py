"""The recommendation and the notes about policies, from counts that are set by hand."""

import pytest

from toedit_collate.config.policies import parse_policy
from toedit_collate.inspection.advice import (
    LABELS,
    ONE_LABEL,
    TOO_FEW,
    notes,
    recommend,
    recommended_policy,
)
from toedit_collate.inspection.findings import COLUMNS, Findings, KindTally
from toedit_collate.inspection.kinds import KINDS

TOKENS = 100_000


def seen(shares, run=None):
    """Findings: for each policy the share of tokens that it changes, or shares by kind."""
    tallies = {}
    for name, share in shares.items():
        tally = tallies[name] = KindTally()
        by_kind = share if isinstance(share, dict) else {None: share}
        for kind, part in by_kind.items():
            row = len(KINDS) if kind is None else KINDS.index(kind)
            tokens = TOKENS if kind is None else TOKENS // 10
            tally.counts[row, COLUMNS.index("tokens")] = tokens
            for column in ("selected", "changed"):
                tally.counts[row, COLUMNS.index(column)] = round(part * tokens)
    return Findings(
        policies={name: None if run else parse_policy(name) for name in shares},
        tallies=tallies, num_documents=1,
        num_tokens=TOKENS, prior="a prior", data="a file", reader=None, run=run,
    )  # fmt: skip


def test_redrawn_labels_are_recommended_with_their_condition():
    findings = seen({"paper": 0.0001, "threshold=0.5": 0.04, LABELS: 0.6, "target=labels": 0.01})
    assert recommended_policy(findings) == LABELS
    advice = recommend(findings)
    assert advice.title.startswith(f"Use {LABELS!r} if the prior is larger than the model")
    assert "train without edits" in advice.title
    assert "60 % of the drawn labels differ from the text" in advice.reason


def test_many_draws_are_recommended_before_one():
    assert recommended_policy(seen({LABELS: 0.5, ONE_LABEL: 0.6})) == LABELS
    other_tokenizer = seen({"paper": 0.1})
    other_tokenizer.is_aligned = True
    assert repr(ONE_LABEL) in recommend(other_tokenizer).title
    assert "another tokenizer gained hardly anything" in recommend(other_tokenizer).reason


@pytest.mark.parametrize("shares", [{"threshold=0.5": 0.04}, {"target=labels": 0.9 * TOO_FEW}])
def test_the_same_is_recommended_where_it_was_not_tried(shares):
    findings = seen(shares)
    assert recommended_policy(findings) is None
    assert LABELS in recommend(findings).title
    assert "not among the policies" in recommend(findings).reason


@pytest.mark.parametrize(
    ("kinds", "remedy"),
    [({"digits": 0.02}, "--protect numbers"), ({"code": 0.02}, "--protect code"),
     ({"digits": 0.02, "code": 0.02}, "--protect code,numbers"), ({"markup": 0.02}, None)],
)  # fmt: skip
def test_changed_digits_code_and_markup_are_named(kinds, remedy):
    (line,) = notes(seen({"reference_code": {None: 0.01, **kinds}}))
    for kind in kinds:
        assert f"{kind} (200 of 10,000 tokens)" in line
    assert line.endswith(f"add {remedy}.") if remedy else "--protect" not in line


def test_notes_on_labels_and_on_too_few_changes():
    few, labels, many = notes(
        seen({"paper": 0.0001, ONE_LABEL: {None: 0.6, "digits": 0.3}, LABELS: 0.6})
    )
    assert few.startswith("paper: changes 0.01 % of the tokens, which is too little")
    assert labels == f"{ONE_LABEL}: only labels change; the model reads the original text."
    assert many.endswith("Each becomes 64 draws; the first is shown here.")


def test_a_training_run_gets_its_own_counts_and_no_recommendation():
    counts = {"selected": 300, "scored": 1000, "selected_share": 0.3, "changed": 10,
              "changed_share": 0.01}  # fmt: skip
    findings = seen({"generation 1": 0.01}, run={"generation 1": counts})
    assert recommend(findings) is None
    (line,) = notes(findings)
    assert "selected 300 of 1,000 scored tokens (30 %) and changed 10 (1 %)" in line
    assert findings.title == "What training edited"
