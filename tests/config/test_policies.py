"""Policies as users write them: one parser for commands, recipes and integrations."""

from __future__ import annotations

import pytest

from toedit_collate import EditPolicy
from toedit_collate.config.options import read_policy
from toedit_collate.config.policies import parse_policy, short_name
from toedit_collate.errors import UnusableError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("paper", EditPolicy.paper()),
        ("reference_code top_k=8", EditPolicy.reference_code(top_k=8)),
        ("reference_code, top_k=8", EditPolicy.reference_code(top_k=8)),
        ("filtering", EditPolicy.reference_code("filtering")),
        ("threshold=0.5 exclude-original=true", EditPolicy(threshold=0.5, exclude_original=True)),
        ("threshold=1e-4 drop-below=1E-5", EditPolicy(threshold=1e-4, drop_below=1e-5)),
        ("paper,protect=code,numbers,top_k=64", EditPolicy(protect="code,numbers", top_k=64)),
        ("protect=numbers,code top_k=64", EditPolicy(protect="code,numbers", top_k=64)),
        ("paper,protect=regex:a b,c,region=all", EditPolicy(protect="regex:a b,c", region="all")),
        (r"paper protect=regex:\d+: #", EditPolicy(protect=r"regex:\d+: #")),
        ("protected_token_ids=[1, 2] top_k=3", EditPolicy(protected_token_ids=(1, 2), top_k=3)),
        ("", EditPolicy()),
    ],
)
def test_spellings(text, expected):
    if isinstance(expected.protect, str):
        assert set(parse_policy(text).protect.split(",")) == set(expected.protect.split(","))
        expected = expected.replace(protect=parse_policy(text).protect)
    assert parse_policy(text) == expected


def test_changes_stand_behind_what_is_written():
    assert parse_policy("paper", threshold=0.9).threshold == 0.9
    assert parse_policy("threshold=0.5", threshold=0.9, seed=3) == EditPolicy(threshold=0.5, seed=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("papper", r"policy must be one of paper, .*got 'papper'"),
        ("paper treshold=0.5", r"got 'paper treshold=0.5'; fields are .*threshold"),
        ("paper,0.9", r"got 'paper,0.9'"),
        ("threshold=50", r"threshold must lie strictly between 0 and 1, got 50"),
        ("paper reference_code", r"got 'paper reference_code'"),
        ("threshold=high", r"threshold must be a number, got 'high'"),
    ],
)
def test_what_is_no_policy(text, message):
    with pytest.raises((TypeError, ValueError), match=message):
        parse_policy(text)
    with pytest.raises(UnusableError, match=f"^--policy: .*{message}"):
        read_policy(text)


def test_a_short_name_is_read_again():
    policy = EditPolicy(threshold=0.5, top_k=64, protect="numbers,code")
    assert parse_policy(short_name(policy)) == policy


def test_rules_for_all_policies_and_those_of_one_are_both_kept():
    own = parse_policy("threshold=0.9 protect=regex:a,b", protect="code")
    assert own == EditPolicy(threshold=0.9, protect="code,regex:a,b")
    assert parse_policy("threshold=0.9", protect="code").protect == "code"
    assert parse_policy("protect=numbers").protect == "numbers"
