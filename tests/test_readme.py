"""What README.md says is so."""

import ast
import pathlib
import re

import pytest

import toedit_collate
from toedit_collate.policy import OPTIONS, PRESETS
from toedit_collate.policy.options import as_markdown

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_policy_table_is_the_policy():
    assert as_markdown(OPTIONS.values()) in README


def test_the_presets_are_all_there():
    for name, preset in PRESETS.items():
        assert f'| `EditPolicy.preset("{name}")` | {preset.help} |' in README


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
    assert command.strip().split(" && ")[-1].startswith("pytest")
    assert command.count("\n") == 1
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()


def test_every_public_name_can_be_had():
    for name in toedit_collate.__all__:
        assert getattr(toedit_collate, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        toedit_collate.nothing  # noqa: B018
