"""`toedit recipes`: recipes and configs come with the package, and can be copied."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toedit_collate.commands.main import main
from toedit_collate.commands.recipes import FOLDERS, configs, fields_of_recipes, scripts

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
COMMON = {
    str(path.relative_to(RECIPES))
    for path in (RECIPES / "common").rglob("*")
    if path.suffix in (".py", ".yaml")
}


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_all_are_listed(capsys):
    assert main(["recipes", "list"]) == 0
    words = capsys.readouterr().out.replace(":", "").split()
    assert len(configs()) >= 20
    studies = (RECIPES / "studies").glob("*.yaml")
    assert {path.stem for path in (*scripts(), *configs(), *studies)} | {*FOLDERS} <= set(words)


def test_a_config_comes_with_its_recipe_and_what_starts_it(tmp_path, capsys):
    assert main(["recipes", "copy", "cpt_llama3_8b_bio", str(tmp_path / "new")]) == 0
    found = names_in(tmp_path / "new")
    config = "configs/cpt_llama3_8b_bio.yaml"
    assert found == {"cpt.py", config, "configs/accelerate/ddp.yaml", *COMMON}
    for name in found:
        assert (tmp_path / "new" / name).read_bytes() == (RECIPES / name).read_bytes()
    new = tmp_path / "new"
    assert f"python {new}/cpt.py --config {new}/{config}" in capsys.readouterr().out


def test_recipes_with_all_of_their_configs_share_a_folder(tmp_path):
    assert main(["recipes", "copy", "self_edit", str(tmp_path)]) == 0
    found = {path.stem for path in (tmp_path / "configs").glob("*.yaml")}
    assert found == {path.stem for path in configs() if path.stem.startswith("self_edit")}
    assert main(["recipes", "copy", "cpt_tiny", str(tmp_path)]) == 0
    assert {"self_edit.py", "cpt.py"} <= names_in(tmp_path)


@pytest.mark.parametrize("name", [*FOLDERS, "cpt", "pretrain"])
def test_what_a_copy_imports_is_copied_along(name, tmp_path):
    assert main(["recipes", "copy", name, str(tmp_path)]) == 0
    own = {path.name for path in RECIPES.iterdir() if path.is_dir()}
    wanted = set()
    for path in tmp_path.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                wanted |= {node.module} if node.module.partition(".")[0] in own else set()
    assert "common" in {module.partition(".")[0] for module in wanted}
    for module in wanted:
        path = tmp_path / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_a_copied_folder_runs_outside_of_the_checkout(name, tmp_path):
    assert main(["recipes", "copy", name, str(tmp_path)]) == 0
    for script in (tmp_path / name).glob("*.py"):
        if "__main__" in script.read_text():
            help_text = run_in(tmp_path, {}, str(script), "--help")
            assert "usage: " in help_text


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "cpt.py").write_text("mine")
    assert main(["recipes", "copy", "cpt_tiny", str(tmp_path)]) == 2
    assert "cpt.py: exists already" in capsys.readouterr().err
    assert names_in(tmp_path) == {"cpt.py"}


def test_the_nearest_name_is_told(tmp_path, capsys):
    assert main(["recipes", "copy", "cpt_tinny", str(tmp_path)]) == 2
    assert "no recipe or config 'cpt_tinny'; did you mean cpt_tiny?" in capsys.readouterr().err


def test_fields_are_read_without_running_a_recipe():
    assert {"config_name", "synthetic_fraction", "generations", "start"} <= fields_of_recipes()


def run_in(folder, env, *words):
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_a_recipe_copied_from_a_wheel_trains(tmp_path):
    """Built from what git tracks, unpacked, and used in a folder outside of the checkout."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in tracked.stdout.decode().split("\0"):
        if (ROOT / name).is_file():
            copy = tmp_path / "source" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    build = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w"]
    run_in(tmp_path, {}, *build, str(tmp_path), str(tmp_path / "source"))
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    run_in(tmp_path, {}, "-m", "zipfile", "-e", str(wheel), str(installed))
    assert {path.name for path in installed.iterdir() if "." not in path.name} == {"toedit_collate"}
    data = installed / "toedit_collate" / "recipes_data"
    assert {path.suffix for path in data.rglob("*") if path.is_file()} == {".py", ".yaml", ".json"}
    env = {"PYTHONPATH": str(installed)}
    imported = run_in(tmp_path, env, "-c", "import toedit_collate; print(toedit_collate.__file__)")
    assert imported.startswith(str(installed))
    command = ["-m", "toedit_collate.commands.main", "recipes", "copy", "sft_lora_tiny", "my"]
    run_in(tmp_path, env, *command)
    config = ["--config", "my/configs/sft_lora_tiny.yaml", "--max_steps", "2"]
    run_in(tmp_path, env, "my/sft_lora.py", *config, "--output_dir", "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["edit"]["scored"] > 0
