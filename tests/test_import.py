import importlib.metadata
import subprocess
import sys

import pytest

import toedit_collate
from toedit_collate.commands.main import main

CODE = """
import sys
import toedit_collate, toedit_collate.commands.main{also}
heavy = {{"torch", "transformers", "trl", "peft", "datasets", "matplotlib", "sklearn", "rich"}}
heavy &= set(sys.modules)
sys.exit(f"imported: {{sorted(heavy)}}" if heavy else 0)
"""


@pytest.mark.parametrize(("also", "light"), [("", True), (", peft", False)])
def test_import_is_light(also, light):
    """Nothing heavy is imported; and the test would see it if it were."""
    code = CODE.format(also=also)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode == 0) == light, done.stderr


def test_public_names_are_there():
    assert set(toedit_collate.__all__) <= set(dir(toedit_collate))
    for name in toedit_collate.__all__:
        assert getattr(toedit_collate, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Priors'"):
        _ = toedit_collate.Priors


def test_the_version_is_that_of_the_installed_package(capsys):
    installed = importlib.metadata.version("toedit_collate")
    assert toedit_collate.__version__ == installed
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"{installed}\n"
