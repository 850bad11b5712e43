"""What README.md says is so."""

import ast
import dataclasses
import pathlib
import re

import pytest

import toedit_collate
from toedit_collate import EditPolicy

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_policy_table_is_the_policy():
    table = README.split("<!-- policy table")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", table, re.M)
    fields = dataclasses.fields(EditPolicy)
    assert [name for name, _ in rows] == [field.name for field in fields]
    assert [ast.literal_eval(value) for _, value in rows] == [field.default for field in fields]


def code_blocks():
    return re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("code", code_blocks())
def test_examples_use_names_that_exist(code):
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "toedit_collate":
            assert {alias.name for alias in node.names} <= set(toedit_collate.__all__)


def test_ci_runs_the_test_command():
    command = README.split("<!-- test command -->")[1].split("```")[1].removeprefix("bash\n")
    assert command.strip().endswith("pytest")
    assert command.count("\n") == 1
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()


def test_every_public_name_can_be_had():
    for name in toedit_collate.__all__:
        assert getattr(toedit_collate, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        toedit_collate.nothing  # noqa: B018
