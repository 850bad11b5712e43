"""What README.md and docs/ say is so; test_docs.py runs their code."""

import pathlib

import pytest

import toedit_collate
from toedit_collate.policy import OPTIONS, PRESETS

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
POLICIES = (ROOT / "docs" / "policies.md").read_text()


def test_the_policy_table_is_the_policy():
    lines = ["| option | default | what it does | source |", "| --- | --- | --- | --- |"]
    for one in OPTIONS.values():
        default = f'"{one.default}"' if isinstance(one.default, str) else repr(one.default)
        lines.append(f"| `{one.name}` | `{default}` | {one.help} | {one.source} |")
    assert "\n".join(lines) in POLICIES


def test_the_presets_are_all_there():
    for name, preset in PRESETS.items():
        assert f'| `EditPolicy.preset("{name}")` | {preset.help} |' in POLICIES


def test_the_first_page_is_a_page():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.stem)
def test_every_page_is_in_the_menu(page):
    assert f": {page.name}\n" in (ROOT / "mkdocs.yml").read_text()


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
