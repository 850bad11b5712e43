"""Which policy to begin with: every answer, from counts that are set by hand."""

import pytest

from toedit_collate.inspection.advice import FOUND, MANY, TOO_FEW
from toedit_collate.inspection.inspection import Inspection
from toedit_collate.inspection.naming import parse_policy
from toedit_collate.inspection.tally import COLUMNS, KindTally, Probabilities

TOKENS = 100_000


def seen(**shares):
    """An inspection: for each policy the share that it changes, or shares by kind of token."""
    tallies = {}
    for name, share in shares.items():
        tally = tallies[name] = KindTally()
        by_kind = share if isinstance(share, dict) else {None: share}
        for kind, part in by_kind.items():
            row = len(tally.names) if kind is None else tally.names.index(kind)
            tokens = TOKENS if kind is None else TOKENS // 10
            tally.counts[row, COLUMNS.index("tokens")] = tokens
            for column in ("selected", "changed"):
                tally.counts[row, COLUMNS.index(column)] = round(part * tokens)
    texts = {name: name.replace("__", " ").replace("_is_", "=") for name in shares}
    return Inspection(
        policies={name: parse_policy(text) for name, text in texts.items()},
        documents=[], tallies=tallies, probabilities=Probabilities(), num_documents=1,
        num_tokens=TOKENS, prior="a prior", data="a file", reader=None,
    )  # fmt: skip


def said(**shares):
    *_, begin, found = seen(**shares).recommend()
    assert found == FOUND
    return begin


def test_of_those_that_fit_the_one_that_changes_most():
    begin = said(**{"paper": 0.0001, "reference_code": 0.01, "threshold_is_0.5": 0.03})
    assert begin.startswith("To begin with: 'threshold_is_0.5'.")
    assert "3.00%" in begin


@pytest.mark.parametrize(
    ("kinds", "mend"),
    [({"digits": 0.02}, "protect=numbers"), ({"code": 0.02}, "protect=code"),
     ({"digits": 0.02, "code": 0.02}, "protect=code,numbers"),
     ({"markup": 0.02}, "a higher threshold")],
)  # fmt: skip
def test_what_spoils_documents_is_to_be_protected(kinds, mend):
    begin = said(reference_code={None: 0.01, **kinds})
    assert begin.startswith(f"To begin with: 'reference_code' with {mend}.")
    # One that spares them is the better choice.
    begin = said(reference_code={None: 0.02, **kinds}, paper=0.01)
    assert begin.startswith("To begin with: 'paper'.")


@pytest.mark.parametrize(
    ("names", "further"),
    [(["paper"], "threshold=0.9 or 0.5), or reference_code"),
     (["reference_code"], "threshold=0.9 top_k=64"),
     (["paper", "reference_code"], "threshold=0.9 top_k=64"),
     (["threshold_is_0.9"], "threshold=0.5 top_k=64"),
     (["reference_code", "threshold_is_0.5"], "threshold=0.1 top_k=64"),
     (["threshold_is_0.05"], "region=all top_k=64"),
     (["region_is_below__threshold_is_0.0001"], "threshold=0.9 or 0.5), or reference_code")],
)  # fmt: skip
def test_where_too_little_changes_what_was_not_tried_is_named(names, further):
    begin = said(**dict.fromkeys(names, 0.9 * TOO_FEW))
    assert begin.startswith("None of these to begin with: they change too little")
    assert further in begin
    assert not any(name.replace("_is_", "=") in begin.split(" Try ")[1] for name in names)


def test_where_all_change_too_much():
    begin = said(paper=0.9 * TOO_FEW, reference_code=2 * MANY)
    assert begin.startswith("None of these to begin with: all change more than 5%")


def test_a_journal_gets_no_choice():
    inspection = seen(paper=0.01)
    inspection.policies["paper"] = None
    (line,) = inspection.recommend()
    assert line.startswith("paper: changed 1.000% of the tokens")


def begins(*policies, share):
    """What is said between the lines of the policies and what was found."""
    shares = {name.replace(" ", "__").replace("=", "_is_"): share for name in policies}
    lines = seen(**shares).recommend()
    return lines[len(policies) : -1]


def test_labels_alone_have_no_upper_bound():
    (begin,) = begins("region=all target=labels", share=0.7)
    assert begin.startswith("To begin with, if the prior is larger")
    assert "'region_is_all__target_is_labels'" in begin
    assert "70.0% of the labels" in begin
    (begin,) = begins("region=all", share=0.7)
    assert begin.startswith("None of these")


def test_labels_and_others_are_told_apart():
    labels, both = begins("threshold=0.5 target=labels", "threshold=0.9", share=0.02)
    assert "'threshold_is_0.5__target_is_labels'" in labels
    assert both.startswith("To begin with: 'threshold_is_0.9'")


def test_too_few_labels_are_told_what_redraws_all():
    (begin,) = begins("target=labels", share=0.0001)
    assert "too few labels" in begin
    assert "region=all top_k=64 target=labels" in begin


def test_a_threshold_is_named_where_none_was_tried():
    (begin,) = begins("region=all", share=0.7)
    assert begin.endswith("Try region=above, as in threshold=0.5.")
