import dataclasses
import functools
import importlib
import math
import pickle
import re
import warnings
from typing import Optional

import pytest
import torch

from toedit_collate import EditPolicy
from toedit_collate.policy import OPTIONS, PRESETS, Redraw


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threshold": 99}, ValueError, r"threshold.*99.*write 0\.99"),
        ({"threshold": 0.0}, ValueError, r"threshold.*strictly between 0 and 1"),
        ({"threshold": 1.0}, ValueError, r"threshold.*strictly between 0 and 1"),
        ({"threshold": "0.9"}, TypeError, r"threshold must be a number, got '0.9'"),
        ({"threshold": float("nan")}, ValueError, r"threshold.*nan"),
        ({"threshold": True}, TypeError, r"threshold.*True"),
        ({"region": "between"}, ValueError, r"region.*'above', 'below', 'all'.*'between'"),
        ({"sampler": "greedy"}, ValueError, r"sampler.*'top_k'.*'greedy'"),
        ({"scope": "prompt"}, ValueError, r"scope.*'loss', 'all'.*'prompt'"),
        ({"redraw": "step"}, ValueError, r"redraw.*'epoch', 'never'.*'step'"),
        ({"top_k": 0}, ValueError, r"top_k must be at least 1, got 0"),
        ({"top_k": 8.0}, TypeError, r"top_k must be a whole number, got 8.0"),
        ({"top_p": 0.0}, ValueError, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, ValueError, r"top_p must lie in.*1\.5"),
        ({"temperature": 0.0}, ValueError, r"temperature must be a finite number above 0, got 0.0"),
        ({"temperature": math.inf}, ValueError, r"temperature must be a finite number"),
        ({"drop_below": 1.0}, ValueError, r"drop_below.*strictly between 0 and 1"),
        ({"drop_below": 0.995}, ValueError, r"drop_below must be less than threshold"),
        ({"seed": -1}, ValueError, r"seed must lie in \[0, 2\*\*64\), got -1"),
        ({"seed": 2**64}, ValueError, r"seed must lie in \[0, 2\*\*64\), got 1844"),
        ({"seed": 0.5}, TypeError, r"seed must be a whole number"),
        ({"exclude_original": 1}, TypeError, r"exclude_original must be True or False, got 1"),
        ({"protect_special": None}, TypeError, r"protect_special must be True or False"),
        ({"protected_token_ids": (-1,)}, ValueError, r"protected_token_ids.*-1"),
        ({"protected_token_ids": (1.0,)}, ValueError, r"protected_token_ids.*1\.0"),
        ({"protect": (1, 2)}, TypeError, r"protect must be rules.*or a function.*\(1, 2\)"),
        ({"protect": "numbrs"}, ValueError, r"no rule 'numbrs'.*the rules are code,"),
        ({"protect": "numbers,cod"}, ValueError, r"no rule 'cod', in 'numbers,cod'"),
        ({"protect": ""}, ValueError, r"protect has no rule ''"),
        ({"protect": "code,regex:"}, ValueError, r"protect has no rule 'regex:'.*EXPRESSION"),
        ({"protect": "regex:("}, ValueError, r"'regex:\(', which is not a regular expression"),
        ({"target": "outputs"}, ValueError, r"target.*'both', 'inputs', 'labels'.*'outputs'"),
        ({"target": "labels", "scope": "all"}, ValueError, r"target='labels'.*use scope='loss'"),
        ({"target": "inputs", "drop_below": 0.1}, ValueError, r"drop_below=0.1.*target='both'"),
    ],
    ids=str,
)
def test_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        EditPolicy(**arguments)


def test_defaults_are_the_papers():
    policy = EditPolicy()
    assert policy == EditPolicy.paper()
    assert (policy.threshold, policy.region, policy.top_k, policy.temperature) == (
        0.99, "above", 8, 1.0,
    )  # fmt: skip


def test_presets_of_the_authors_script():
    up = EditPolicy.reference_code("up_revise")
    assert (up.threshold, up.top_k, up.temperature, up.drop_below) == (0.99, 8, 1.5, None)
    both = EditPolicy.reference_code("low_drop_up_revise")
    assert (both.temperature, both.drop_below, both.region) == (1.0, 0.001, "above")
    only_drop = EditPolicy.reference_code("filtering")
    assert (only_drop.region, only_drop.drop_below) == ("none", 0.001)
    assert EditPolicy.reference_code(top_k=64, seed=3) == up.replace(top_k=64, seed=3)
    with pytest.raises(ValueError, match=r"strategy must be one of up_revise.*'down'"):
        EditPolicy.reference_code("down")


def test_deletion_above_a_threshold():
    """Table 7's runs delete the region instead of drawing it again."""
    policy = EditPolicy(region="none", drop_above=0.99)
    logprob = torch.tensor([math.nan, math.log(0.5), math.log(0.99), 0.0])
    assert policy.drops(logprob).tolist() == [False, False, True, True]
    assert (policy.decides, policy.drops_tokens) == (True, True)
    assert policy.lowest_cut == math.log(0.99)
    assert EditPolicy(drop_above=0.999, drop_below=0.001).lowest_cut == math.log(0.001)
    with pytest.raises(ValueError, match="every token would be removed"):
        EditPolicy(region="none", drop_below=0.5, drop_above=0.4)
    with pytest.raises(ValueError, match=r"drop_above=0.9, target='labels' can't be combined"):
        EditPolicy(drop_above=0.9, target="labels")


@pytest.mark.parametrize(
    "arguments",
    [
        {"sampler": "top_p", "top_p": 0.99},
        {"sampler": "top_p", "top_p": 0.9, "temperature": 0.5},
        {"top_k": 1},
    ],
)
def test_says_when_it_can_change_nothing(arguments):
    with pytest.warns(UserWarning, match="can change no token.*the only candidate"):
        EditPolicy(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"sampler": "top_p", "top_p": 0.999},
        {"sampler": "top_p", "top_p": 0.99, "temperature": 1.5},
        {"top_k": 1, "exclude_original": True},
        {"top_k": 1, "region": "below", "threshold": 0.1},
    ],
)
def test_says_nothing_of_others(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EditPolicy(**arguments)


def test_thresholds_are_compared_in_float32():
    below = torch.tensor([0.9899], dtype=torch.float64).log()
    assert not EditPolicy().selects(below.to(torch.float32)).any()
    assert EditPolicy().selects(torch.tensor([0.9901]).log()).all()
    nan = torch.tensor([float("nan")])
    for policy in (EditPolicy(drop_below=0.1), EditPolicy(region="below")):
        assert not policy.selects(nan).any()
        assert not policy.drops(nan).any()


def test_the_lowest_cut_is_the_lowest_of_its_decisions():
    assert EditPolicy().lowest_cut == math.log(0.99)
    assert EditPolicy(drop_below=0.001).lowest_cut == math.log(0.001)
    assert EditPolicy.reference_code("filtering").lowest_cut == math.log(0.001)
    assert EditPolicy(region="none").lowest_cut == math.inf
    assert not EditPolicy(region="none").decides


def test_is_frozen_plain_data():
    policy = EditPolicy(protected_token_ids=[4, 5])
    assert policy.protected_token_ids == (4, 5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.threshold = 0.5
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) == hash(EditPolicy(protected_token_ids=(4, 5)))


def spare_three(ids, tokenizer):
    return ids == 3


def spare_four(ids, tokenizer):
    return ids == 4


class Spare:
    def __call__(self, ids, tokenizer):
        return ids == 5

    def method(self, ids, tokenizer):
        return ids == 6


class TestRecordOfAFunction:
    """`record()` names a function in `protect`, and tells functions with other code apart."""

    @staticmethod
    def described(function):
        return EditPolicy(protect=function).record()["protect"]

    def test_is_its_name_and_a_hash_of_its_source(self):
        functions = [
            spare_three, spare_four, lambda ids, _: ids == 7, Spare(), Spare().method,
        ]  # fmt: skip
        descriptions = [self.described(function) for function in functions]
        assert len(set(descriptions)) == len(functions)
        for name, description in zip(
            ["spare_three", "spare_four", ".*<lambda>", "Spare", "Spare.method"],
            descriptions,
            strict=True,
        ):
            assert re.fullmatch(rf"{name} \(source [0-9a-f]{{16}}\)", description)
        assert self.described(spare_three) == descriptions[0]
        assert self.described(functools.partial(spare_three)) == descriptions[0]

    def test_another_body_under_the_same_name(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(tmp_path)
        found = []
        for number in (1, 2):
            (tmp_path / f"rules_{number}.py").write_text(f"def f(i, t): return i == {number}\n")
            found.append(self.described(importlib.import_module(f"rules_{number}").f))
        assert found[0].split(" (")[0] == found[1].split(" (")[0] == "f"
        assert found[0] != found[1]

    def test_is_the_name_where_there_is_no_source(self):
        assert self.described(len) == "len"
        assert self.described(eval("lambda ids, tokenizer: ids == 3")) == "<lambda>"


class TestOptions:
    def test_every_field_says_what_it_is_for(self):
        assert [*OPTIONS] == [field.name for field in dataclasses.fields(EditPolicy)]
        for option in OPTIONS.values():
            assert option.help
            assert "%" not in option.help + option.source  # argparse would fill it in
            assert not option.help.endswith(".")

    def test_say_what_a_value_is(self):
        kinds = {name: option.kind for name, option in OPTIONS.items()}
        assert (kinds["threshold"], kinds["drop_below"]) == (float, float)
        assert (kinds["top_k"], kinds["scope"], kinds["protect_special"]) == (int, str, bool)
        assert OPTIONS["region"].choices == ("above", "below", "all", "none")
        assert OPTIONS["protected_token_ids"].is_list
        assert OPTIONS["protected_token_ids"].annotation == Optional[list[int]]  # noqa: UP045
        assert OPTIONS["redraw"].annotation == Optional[Redraw]  # noqa: UP045

    def test_rules_are_text(self):
        assert OPTIONS["protect"].kind is str
        assert not OPTIONS["protect"].choices


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_fields(name):
    policy = EditPolicy.preset(name, seed=3)
    assert policy == EditPolicy(**PRESETS[name].fields, seed=3)


def test_the_presets_by_their_other_names():
    assert EditPolicy.preset("paper") == EditPolicy.paper()
    assert EditPolicy.preset("reference_code") == EditPolicy.reference_code()
    for strategy in ("low_drop_up_revise", "filtering"):
        assert EditPolicy.preset(strategy) == EditPolicy.reference_code(strategy)
    with pytest.raises(ValueError, match=r"policy must be one of paper, .*filtering, got 'papers'"):
        EditPolicy.preset("papers")


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("numbers", ["numbers"]),
        (" urls , code,code ", ["code", "urls"]),
        (r"regex:\d{1,3},numbers", ["numbers", r"regex:\d{1,3}"]),
        ("regex:a,b", ["regex:a,b"]),
        ("regex:a,regex:b", ["regex:a", "regex:b"]),
    ],
)
def test_rules_are_read_and_put_in_order(text, rules):
    policy = EditPolicy(protect=text)
    assert policy.protect == ",".join(rules)
    assert policy.record()["protect"] == policy.protect
    assert pickle.loads(pickle.dumps(policy)) == policy == EditPolicy(protect=policy.protect)


def test_every_token_is_a_region_without_a_threshold():
    policy = EditPolicy(region="all")
    selected = policy.selects(torch.tensor([-30.0, 0.0, float("nan")]))
    assert selected.tolist() == [True, True, False]
    assert policy.lowest_cut == math.inf
    assert policy.decides
    assert EditPolicy(region="all", threshold=0.1, drop_below=0.5).lowest_cut == math.log(0.5)


class TestManyDraws:
    def test_the_preset_redraws_every_label(self):
        policy = EditPolicy.distill()
        assert policy == EditPolicy(region="all", target="labels", sampler="full", num_draws=64)
        assert policy == EditPolicy.preset("distill")
        assert EditPolicy.distill(1, redraw="never").num_draws == 1

    def test_rejection_is_another_name_for_full(self):
        assert EditPolicy(sampler="rejection") == EditPolicy(sampler="full")
        assert EditPolicy(sampler="rejection").record()["sampler"] == "full"

    @pytest.mark.parametrize(
        ("fields", "match"),
        [
            ({"num_draws": 0}, r"num_draws must lie in \[1, 255\], got 0"),
            ({"num_draws": 256}, "got 256"),
            ({"target": "both"}, "target='both' can't be combined.*use target='labels'"),
            ({"target": "inputs"}, "target='inputs' can't be combined"),
            ({"sampler": "top_k"}, "sampler='top_k' can't be combined.*use sampler='full'"),
            ({"drop_below": 0.001}, "drop_below"),
        ],
    )
    def test_refusals(self, fields, match):
        with pytest.raises(ValueError, match=match):
            EditPolicy(**{**EditPolicy.distill().record(), **fields})
