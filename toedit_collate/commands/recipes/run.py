"""Lists the recipes and configs of the package, and copies them."""

from __future__ import annotations

import ast
import re
import shutil
import textwrap
from pathlib import Path

from ...config.fields import read_yaml
from ...config.nearest import did_you_mean
from ...data.files import whole
from ...errors import UnusableError
from .places import configs, recipes_folder, scripts, studies

STUDIES = "studies"
_PLACE = re.compile(r"# plan for:[^,\n]*, (\S+)")


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
                show(f"{config.stem}: {_about(config)}", 4)
    print(f"{STUDIES}: Experiments on when editing pays, each with its question.")
    for study in (path for path in studies() if path.suffix == ".yaml"):
        show(f"{study.stem}: {_question(study)}", 4)
    print(
        "\ntoedit recipes copy NAME DIR   copies a recipe with its configs, one config, or the "
        "studies"
    )


def copy_recipe(name: str, folder: Path) -> None:
    """Copy a recipe with its configs, or a config with its recipe, and print how to start it.

    Raises:
        UnusableError: there is no such recipe or config, or a file is there already.
    """
    stem = name.removesuffix(".py").removesuffix(".yaml")
    if stem == STUDIES:
        _copy({path: folder / STUDIES / path.name for path in studies()})
        print(f"\nRead it first, then: python {folder / STUDIES / 'run.py'} --help")
        return
    chosen = [config for config in configs() if stem in (config.stem, script_of(config))]
    names = {STUDIES, *(path.stem for path in (*scripts(), *configs()))}
    if stem not in names:
        raise UnusableError(
            f"no recipe or config {name!r}; {did_you_mean(stem, names)} `toedit recipes list` has "
            "all names"
        )
    home = recipes_folder()
    wanted = {home / f"{script_of(config)}.py" for config in chosen} | set(chosen)
    wanted |= {path for config in chosen for path in _beside(config)}
    targets = {path: folder / path.relative_to(home) for path in sorted(wanted)}
    _copy(targets)
    # What a stranger can start at once, where there is one: without a GPU or a download.
    first = next((config for config in chosen if config.stem.endswith("_tiny")), chosen[0])
    script, config = folder / f"{script_of(first)}.py", targets[first]
    print(f"\nStart it: python {script} --config {config}")
    print(f"What it takes: toedit plan --config {config}")


def _copy(targets: dict[Path, Path]) -> None:
    for target in targets.values():
        if target.exists():
            raise UnusableError(f"{target}: is there already; remove it, or name another DIR")
    for path, target in targets.items():
        with whole(target, replace=False) as place:
            shutil.copyfile(path, place)
        print(target)


def _question(study: Path) -> str:
    """What a study asks, its first sentence."""
    question = " ".join(str(read_yaml(study, "study")["question"]).split())
    return question.split("? ")[0].rstrip("?") + "?"


def script_of(config: Path) -> str:
    """The recipe that a config is for: its header has the command."""
    found = re.search(r"recipes/(\w+)\.py", config.read_text("utf-8"))
    if found is None:
        raise UnusableError(f"{config}: its header names no recipe, recipes/NAME.py")
    return found.group(1)


def _about(config: Path) -> str:
    """The first line of a config's header that is no command and no plan."""
    for line in config.read_text("utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#"):
            break
        if text and not re.match(r"(plan|python|accelerate|torchrun|toedit|--)\b", text):
            return text
    return ""


def _beside(config: Path) -> list[Path]:
    """Files that the header of a config names: how accelerate starts it."""
    found = _PLACE.search(config.read_text("utf-8"))
    path = config.parent / found.group(1) if found else None
    return [path] if path is not None and path.is_file() else []
