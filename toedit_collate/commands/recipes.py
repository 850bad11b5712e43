"""`toedit recipes`: lists the training recipes that come with the package, and copies them.

A recipe is a script (`cpt`), a config is a YAML file for a recipe (`cpt_tiny`), and a folder holds
other scripts (`studies`, `paper`). Each copy includes `common/`, which they all import.
"""

from __future__ import annotations

import ast
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

from ..config.fields import did_you_mean, read_yaml
from ..config.options import add_command
from ..data.files import whole
from ..errors import UnusableError

_PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = {
    "paper": "The paper's data (make_data.py), evaluation (evaluate.py), tables and figures.",
    "studies": "Experiments on when editing pays (run.py), each with its question.",
}


def add_recipes(commands: Any) -> None:
    """Add `recipes` to the subcommands of an argparse parser."""
    about = "list the training recipes and their configs, or copy one"
    parser = add_command(commands, "recipes", about, about, "toedit recipes list")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    about = "list recipes and configs, and what they are for"
    listing = add_command(actions, "list", about, about, "toedit recipes list")
    listing.set_defaults(run=lambda args: list_recipes(), command="recipes list")
    copy = add_command(
        actions,
        "copy",
        "copy a recipe and its configs, or one config and its recipe",
        "Copy the recipe NAME with all of its configs, the config NAME with its recipe, or the "
        "folder NAME of scripts, into DIR, together with the code that they share.",
        "toedit recipes copy sft_lora my_run",
    )
    copy.add_argument("name", metavar="NAME", help="a name that `toedit recipes list` prints")
    copy.add_argument("folder", type=Path, metavar="DIR", help="created if it does not exist")
    copy.set_defaults(run=lambda args: copy_recipe(args.name, args.folder), command="recipes copy")


def list_recipes() -> None:
    """Print each recipe with its configs, and what they are for."""
    columns = min(shutil.get_terminal_size((100, 24)).columns, 120)

    def show(text: str, indent: int) -> None:
        before, after = " " * indent, " " * (indent + 4)
        print(textwrap.fill(text, columns, initial_indent=before, subsequent_indent=after))

    for script in scripts():
        summary = (ast.get_docstring(ast.parse(script.read_text("utf-8"))) or "").splitlines()[0]
        show(f"{script.stem}: {summary}", 0)
        for config in configs():
            if script_of(config) == script.stem:
                show(f"{config.stem}: {config.read_text('utf-8').splitlines()[0][2:]}", 4)
    for name, summary in FOLDERS.items():
        show(f"{name}: {summary}", 0)
    for path in sorted((recipes_folder() / "studies").glob("*.yaml")):
        question = " ".join(read_yaml(path, "study")["question"].split())
        show(f"{path.stem}: {question.partition('? ')[0].rstrip('?')}?", 4)
    print("\ntoedit recipes copy NAME DIR   copies a recipe, a config with its recipe, or a folder")


def copy_recipe(name: str, folder: Path) -> None:
    """Copy a recipe with its configs, or a config with its recipe, and print how to start it.

    Raises:
        UnusableError: there is no such recipe or config, or another file is in the way.
    """
    root, stem = recipes_folder(), name.removesuffix(".py").removesuffix(".yaml")
    chosen = [config for config in configs() if stem in (config.stem, script_of(config))]
    if stem in FOLDERS:
        wanted = _sources(root / stem)
        start = f"Each script has a --help: {folder / stem}/*.py"
    elif chosen:
        headers = "".join(config.read_text("utf-8") for config in chosen)
        launchers = re.findall(r"recipes/(configs/accelerate/\w+\.yaml)", headers)
        wanted = [root / f"{script_of(one)}.py" for one in chosen] + [root / x for x in launchers]
        # A user can start the tiny one at once, without a GPU or a download.
        first = next((config for config in chosen if config.stem.endswith("_tiny")), chosen[0])
        copy = folder / first.relative_to(root)
        start = f"Start it: python {folder / script_of(first)}.py --config {copy}\n"
        start += f"What it takes: toedit plan --config {copy}"
    else:
        names = {*FOLDERS, *(path.stem for path in (*scripts(), *configs()))}
        raise UnusableError(
            f"no recipe or config {name!r}; {did_you_mean(stem, names)} `toedit recipes list` has "
            "all names"
        )
    wanted += [*chosen, *_sources(root / "common")]
    _copy({path: folder / path.relative_to(root) for path in sorted(set(wanted))})
    print(f"\n{start}")


def _sources(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".py", ".yaml")]


def _copy(targets: dict[Path, Path]) -> None:
    """Copy all files, or none if one would replace a different file."""
    for path, target in targets.items():
        if target.exists() and target.read_bytes() != path.read_bytes():
            raise UnusableError(f"{target}: exists already; remove it, or name another DIR")
    for path, target in targets.items():
        if not target.exists():
            with whole(target, replace=False) as place:
                shutil.copyfile(path, place)
            print(target)


def recipes_folder() -> Path:
    """The folder with the recipes (`cpt.py`, ...) and their `configs/`."""
    # A wheel has them inside the package, a checkout next to it.
    for folder in (_PACKAGE / "recipes_data", _PACKAGE.parent / "recipes"):
        if (folder / "configs").is_dir():
            return folder
    raise UnusableError(f"the recipes are missing from {_PACKAGE}; install toedit_collate again")


def scripts() -> list[Path]:
    """The recipes, sorted by name."""
    return sorted(recipes_folder().glob("*.py"))


def configs() -> list[Path]:
    """The configs of recipes, sorted by name."""
    return sorted((recipes_folder() / "configs").glob("*.yaml"))


def script_of(config: Path) -> str:
    """The recipe that a config is for: its header contains the command."""
    found = re.search(r"recipes/(\w+)\.py", config.read_text("utf-8"))
    if found is None:
        raise UnusableError(f"{config}: its header names no recipe, recipes/NAME.py")
    return found.group(1)


def fields_of_recipes() -> set[str]:
    """Names of the config fields that recipes define themselves.

    Example:
        >>> "generations" in fields_of_recipes()
        True
    """
    files = (*scripts(), recipes_folder() / "common" / "arguments.py")
    bodies = (ast.parse(file.read_text("utf-8")).body for file in files)
    classes = (node for body in bodies for node in body if isinstance(node, ast.ClassDef))
    fields = (one for node in classes for one in node.body if isinstance(one, ast.AnnAssign))
    return {one.target.id for one in fields if isinstance(one.target, ast.Name)}
