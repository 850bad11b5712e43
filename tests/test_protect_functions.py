"""What tells two functions for `EditPolicy.protect` apart."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toedit_collate import EditPolicy
from toedit_collate.policy.function import describe_function

SPARED = 3


def spare(ids, tokenizer, *, value=0):
    return ids == value


def spare_global(ids, tokenizer):
    return ids == SPARED


def spare_by_another(ids, tokenizer):
    return spare_global(ids, tokenizer)


def spare_by_itself(ids, tokenizer, again=True):
    return spare_by_itself(ids, tokenizer, again=False) if again else ids == 1


def around(value):
    return lambda ids, tokenizer: torch.isin(ids, torch.tensor(value))


class Spare:
    def __init__(self, value):
        self.value = value

    def __call__(self, ids, tokenizer):
        return ids == self.value

    def method(self, ids, tokenizer):
        return ids != self.value


def all_different():
    """Pairs of functions that differ in the one thing that their name says."""

    def default(ids, tokenizer, value=1):
        return ids == value

    def another_default(ids, tokenizer, value=2):
        return ids == value

    another_default.__qualname__ = default.__qualname__
    holes = around([1]), around([2])
    patterns = around(re.compile("a")), around(re.compile("a", re.IGNORECASE))
    ids = around(torch.tensor([1, 2])), around(torch.tensor([1, 3]))
    return {
        "constants": (lambda ids, _: ids == 3, lambda ids, _: ids == 4),
        "a constant within": (lambda ids, _: [i + 3 for i in ids],
                              lambda ids, _: [i + 4 for i in ids]),
        "operators": (lambda ids, _: ids == 3, lambda ids, _: ids != 3),
        "names": (lambda ids, _: ids.bool(), lambda ids, _: ids.byte()),
        "defaults": (default, another_default),
        "closures": holes,
        "patterns": patterns,
        "tensors": ids,
        "sets": (around({1, 2}), around({1, 3})),
        "dictionaries": (around({1: 2}), around({1: 3})),
        "kinds of number": (around(1), around(1.0)),
        "arguments": (functools.partial(spare, value=1), functools.partial(spare, value=2)),
        "fields": (Spare(1), Spare(2)),
        "fields of methods": (Spare(1).method, Spare(2).method),
    }  # fmt: skip


@pytest.mark.parametrize("name", all_different())
def test_functions_that_differ(name):
    first, second = map(describe_function, all_different()[name])
    again, _ = map(describe_function, all_different()[name])
    assert first.split(" (code")[0] == second.split(" (code")[0]
    assert first != second
    assert first == again


@pytest.mark.parametrize("function", [spare_global, spare_by_another])
def test_globals_count(function, monkeypatch):
    def described():
        return EditPolicy(protect=functools.partial(function)).record()["protect"]

    before = described()
    monkeypatch.setitem(globals(), "SPARED", 4)
    assert described() != before


def test_what_a_function_remembers_does_not_count():
    seen = []

    def spare(ids, tokenizer):
        seen.append(ids)
        return ids == 1

    before = EditPolicy(protect=spare).record()
    spare(torch.arange(3), None)
    assert EditPolicy(protect=spare, seed=0).record() == before


def test_odd_ones_are_described():
    holder = []
    holder.append(holder)
    for function in (len, around(holder), around(object()), around(torch.nn.Linear(2, 2)),
                     spare_by_itself, torch.nn.Identity()):  # fmt: skip
        assert describe_function(function) == describe_function(function)
    assert describe_function(len) == "len"


@pytest.mark.slow
def test_the_same_in_every_process():
    """Nothing of it depends on addresses, or on the seed of string hashes."""
    code = (
        "import test_protect_functions as t; "
        "print([[t.describe_function(f) for f in pair] for pair in t.all_different().values()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, text=True, capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "7"}, check=True,
    )  # fmt: skip
    here = [[describe_function(f) for f in pair] for pair in all_different().values()]
    assert done.stdout == f"{here}\n"
