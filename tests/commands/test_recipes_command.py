"""`toedit recipes`: recipes and configs come with the package, and can be copied."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from toedit_collate.commands.main import main
from toedit_collate.commands.recipes.places import configs, fields_of_recipes, scripts, studies

ROOT = Path(__file__).parents[2]


def test_all_are_listed(capsys):
    assert main(["recipes", "list"]) == 0
    words = capsys.readouterr().out.replace(":", "").split()
    assert len(configs()) >= 20
    assert {path.stem for path in (*scripts(), *configs())} <= set(words)
    assert {path.stem for path in studies() if path.suffix == ".yaml"} <= set(words)


def test_studies_come_with_what_runs_them(tmp_path, capsys):
    assert main(["recipes", "copy", "studies", str(tmp_path)]) == 0
    found = {path.name: path for path in (tmp_path / "studies").iterdir()}
    assert {"run.py", "unseen_prior.yaml"} <= found.keys() == {path.name for path in studies()}
    script = [sys.executable, str(found["run.py"]), "--help"]
    told = subprocess.run(script, capture_output=True, text=True, check=True)
    assert "--study" in told.stdout
    assert main(["recipes", "copy", "studies", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_config_comes_with_its_recipe_and_what_starts_it(tmp_path, capsys):
    assert main(["recipes", "copy", "cpt_llama3_8b_bio", str(tmp_path / "new")]) == 0
    found = {str(p.relative_to(tmp_path / "new")) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"cpt.py", "configs/cpt_llama3_8b_bio.yaml", "configs/accelerate/ddp.yaml"}
    for name in found:
        assert (tmp_path / "new" / name).read_bytes() == (ROOT / "recipes" / name).read_bytes()
    assert (
        f"python {tmp_path}/new/cpt.py --config {tmp_path}/new/configs/cpt_llama3_8b_bio.yaml"
        in (capsys.readouterr().out)
    )


def test_a_recipe_comes_with_all_of_its_configs(tmp_path):
    assert main(["recipes", "copy", "self_edit", str(tmp_path)]) == 0
    found = {path.stem for path in (tmp_path / "configs").glob("*.yaml")}
    assert found == {path.stem for path in configs() if path.stem.startswith("self_edit")}


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "cpt.py").write_text("mine")
    assert main(["recipes", "copy", "cpt_tiny", str(tmp_path)]) == 2
    assert "cpt.py: is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["cpt.py"]


def test_the_nearest_name_is_told(tmp_path, capsys):
    assert main(["recipes", "copy", "cpt_tinny", str(tmp_path)]) == 2
    assert "no recipe or config 'cpt_tinny'; did you mean cpt_tiny?" in capsys.readouterr().err


def test_fields_are_read_without_running_a_recipe():
    assert {"config_name", "synthetic_fraction", "generations", "start"} <= fields_of_recipes()


@pytest.mark.slow
def test_a_wheel_has_them(tmp_path):
    """Built, unpacked, and asked from another folder."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    done = subprocess.run(
        [*build, "-w", str(tmp_path), str(ROOT)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(tmp_path / "installed")])
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-m", "toedit_collate.commands.main", "recipes", "copy", "cpt_tiny"]
    done = subprocess.run(
        [*command, str(tmp_path / "copy")], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy" / "configs" / "cpt_tiny.yaml").is_file()
    assert (tmp_path / "installed/toedit_collate/recipes_data/studies/run.py").is_file()
    packages = {path.name for path in (tmp_path / "installed").iterdir() if path.is_dir()}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"toedit_collate"}
