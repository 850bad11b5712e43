"""Where the recipes and their configs are, in a checkout and in an installed package."""

from __future__ import annotations

import ast
from pathlib import Path

from ...errors import UnusableError

_PACKAGE = Path(__file__).resolve().parents[2]


def recipes_folder() -> Path:
    """The folder with the recipes (`cpt.py`, ...) and their `configs/`.

    Raises:
        UnusableError: they are not there.
    """
    # A wheel brings them in the package; a checkout has them beside it.
    for folder in (_PACKAGE / "recipes_data", _PACKAGE.parent / "recipes"):
        if (folder / "configs").is_dir():
            return folder
    raise UnusableError(
        f"the recipes are missing from {_PACKAGE}; install toedit_collate again, or take them from "
        "a checkout"
    )


def scripts() -> list[Path]:
    """The recipes, in the order of their names."""
    return sorted(path for path in recipes_folder().glob("*.py") if path.name != "__init__.py")


def configs() -> list[Path]:
    """The configs of recipes, in the order of their names."""
    return sorted((recipes_folder() / "configs").glob("*.yaml"))


def studies() -> list[Path]:
    """The script that runs studies, and the studies, in the order of their names."""
    folder = recipes_folder() / "studies"
    return [*sorted(folder.glob("*.py")), *sorted(folder.glob("*.yaml"))]


def fields_of_recipes() -> set[str]:
    """Names of the fields that recipes add to those of `common` and TRL.

    Example:
        >>> "generations" in fields_of_recipes()
        True
    """
    names = set()
    for script in scripts():
        for node in ast.parse(script.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                own = [one.target for one in node.body if isinstance(one, ast.AnnAssign)]
                names |= {target.id for target in own if isinstance(target, ast.Name)}
    return names
