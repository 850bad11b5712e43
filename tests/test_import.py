"""What is imported, and when: in an interpreter of its own, which has imported nothing yet."""

import importlib.metadata
import json
import subprocess
import sys

import pytest

import toedit_collate
from toedit_collate.commands.main import main

CODE = """
import contextlib, io, json, sys

NAMES = {"torch", "transformers", "trl", "peft", "datasets", "pyarrow", "matplotlib", "sklearn",
         "rich", "toedit_collate.head.triton_kernels"}
found = {}

def look(moment):
    found[moment] = sorted(name for name in NAMES if sys.modules.get(name))

def print_help(*command):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as printed:
        main([*command, "--help"])
    found[command[0]] = printed.getvalue()
    look(f"{command[0]} --help")

import toedit_collate
from toedit_collate.commands.main import main
look("package")

print_help("demo")
print_help("journal", "export")

missing = ["trl", "peft", "datasets", "pyarrow", "matplotlib", "axolotl"]
sys.modules.update(dict.fromkeys(missing))
import toedit_collate.integrations.axolotl

import torch
import toedit_collate.head.kernels as kernels
kernels.importlib.util.find_spec = lambda name: None
found["kernel without triton"] = kernels.is_available(torch.device("cuda"))

look("end")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    """What that interpreter has found; it ends with an error where an import fails."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_the_package_is_light(found):
    """Nothing heavy is imported with it; and `found` has what is."""
    assert found["package"] == []
    assert {"torch", "transformers"} <= set(found["end"])


@pytest.mark.parametrize(("command", "option"), [("demo", "--prior"), ("journal", "train_dataset")])
def test_the_help_of_a_command_imports_no_optional_package(found, command, option):
    assert option in found[command]
    assert {"trl", "peft", "datasets", "pyarrow"}.isdisjoint(found[f"{command} --help"])


def test_the_kernel_needs_triton_where_it_is_used(found):
    assert found["kernel without triton"] is False
    assert "toedit_collate.head.triton_kernels" not in found["end"]


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
