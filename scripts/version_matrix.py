"""Run the tests in other versions of the libraries around us: the table in docs/versions.md.

    python scripts/version_matrix.py oldest --make /tmp/oldest  # makes an environment, runs
    python scripts/version_matrix.py oldest --python /tmp/oldest/bin/python  # in an existing one
    python scripts/version_matrix.py oldest --python ... --write      # writes its line of the table

`oldest` is what pyproject.toml says are the lowest versions, so that its bounds are what was run.
It needs Python 3.11 itself.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).parents[1]
TABLE = ROOT / "docs" / "versions.md"
LIBRARIES = ("torch", "transformers", "accelerate", "trl", "peft", "datasets")
# For the tests themselves.
_TOOLS = ["pytest", "pytest-xdist", "hypothesis", "scipy", "pydantic", "matplotlib", "scikit-learn"]

ALL = ["tests", "toedit_collate", "recipes"]
# What meets the libraries around us.
OUTSIDE = [
    "tests/training", "tests/prior", "tests/integrations", "tests/commands/test_sft_command.py",
    "tests/recipes/test_recipes.py",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """An environment, and what is run in it.

    Attributes:
        python: its version.
        pins: what is installed; "OLDEST": the lowest that pyproject.toml allows.
        tests: files and folders.
        alone: what is installed without what it asks for.
        slow: whether slow tests, too.
    """

    python: str
    pins: tuple[str, ...]
    tests: list[str]
    alone: tuple[str, ...] = ()
    slow: bool = False


_NEWEST = ("torch", "transformers", "accelerate", "trl", "peft", "datasets")
ROWS = {
    "oldest": Row("3.10", ("OLDEST",), ALL),
    "pinned": Row("3.11", ("-c", "constraints.txt", *_NEWEST), ALL),
    "pinned, Python 3.10": Row("3.10", ("-c", "constraints.txt", *_NEWEST), OUTSIDE),
    "newest, Python 3.12": Row("3.12", _NEWEST, OUTSIDE),
    "newest": Row("3.13", (*_NEWEST, "bitsandbytes", "torchao", "lightning"), ALL),
    # Its metadata asks for kernels that need a GPU, so its pins, and what it imports, are here.
    "Axolotl 0.19.0": Row(
        "3.11",
        ("torch==2.13.0", "transformers==5.16.1", "peft==0.20.0", "accelerate==1.13.0",
         "datasets==4.8.4", "trl==1.9.0", "tokenizers==0.23.1", "huggingface_hub==1.17.0",
         "pydantic==2.12.5", "bitsandbytes==0.50.2", "torchao==0.17.0", "typer==0.25.1",
         "posthog==6.7.11", "mistral-common==1.11.5", "schedulefree==1.4.1", "addict", "art",
         "colorama", "einops", "evaluate", "fastcore", "fire", "immutabledict", "langdetect",
         "numba", "nvidia-ml-py", "python-dotenv", "PyYAML", "requests", "sentencepiece", "triton",
         "wandb", "zstandard"),
        ["tests/integrations/test_axolotl.py", "tests/integrations/test_configs.py"],
        alone=("axolotl==0.19.0", "axolotl-contribs-lgpl==0.0.7", "axolotl-contribs-mit==0.0.6"),
        slow=True,
    ),
    # It imports torchaudio and torchvision, whose builds must be for the same CUDA as torch's, or
    # for none: else make the environment yourself, and pass --python.
    "LLaMA-Factory 0.9.5": Row(
        "3.11",
        ("torch==2.13.0", "llamafactory==0.9.5"),
        ["tests/integrations/test_llamafactory.py", "tests/integrations/test_configs.py"],
        slow=True,
    ),
    # Its own bounds, but for trl 1.15, whose SFTTrainer does not train on a CPU. It can't be
    # imported without a GPU: its file of patches is loaded by itself.
    "Unsloth 2026.10.9": Row(
        "3.11",
        ("torch==2.13.0", "transformers==5.17.0", "accelerate", "trl<1.15", "peft",
         "datasets<5,!=4.4.*,!=4.5.0", "bitsandbytes"),
        OUTSIDE,
        alone=("unsloth==2026.10.9",),
    ),
}  # fmt: skip

_VERSIONS = (
    "import platform, importlib.metadata as m\n"
    "def version(n):\n"
    "    try: return m.version(n).split('+')[0]\n"
    "    except m.PackageNotFoundError: return '-'\n"
    f"print(platform.python_version(), *map(version, {LIBRARIES!r}))"
)


def lowest_versions() -> list[str]:
    """The lower bounds of pyproject.toml, as pins: of the core, and of the extra `recipes`."""
    import tomllib  # not in Python 3.10

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["recipes"]]
    return [re.sub(r">=([\d.]+).*", r"==\1", one) for one in asked]


def make_environment(row: Row, folder: pathlib.Path) -> str:
    """Install what a row asks for; returns the Python of the new environment."""
    pins = [one for pin in row.pins for one in (lowest_versions() if pin == "OLDEST" else [pin])]
    python = str(folder / "bin" / "python")
    if shutil.which("uv"):
        subprocess.run(["uv", "venv", "--python", row.python, folder], check=True)
        install = ["uv", "pip", "install", "--python", python]
    else:
        interpreter = shutil.which(f"python{row.python}")
        if interpreter is None:
            sys.exit(f"No python{row.python} on the PATH, and no uv, which would fetch one")
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install"]
    subprocess.run([*install, *pins, *_TOOLS], check=True, cwd=ROOT)
    if row.alone:
        subprocess.run([*install, "--no-deps", *row.alone], check=True)
    return python


def versions_of(python: str) -> list[str]:
    """Of Python and of the libraries; "-" where one is not installed."""
    done = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True)
    return done.stdout.split()


def run_row(name: str, python: str, log: pathlib.Path | None) -> str:
    """Run the tests of a row, and show how they go on; returns its line of the table."""
    row = ROWS[name]
    which = "slow or not slow" if row.slow else "not slow"
    command = [python, "-m", "pytest", "-q", "-m", which, "-p", "no:cacheprovider", *row.tests]
    if subprocess.run([python, "-c", "import xdist"], capture_output=True).returncode == 0:
        command += ["-n", "auto"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AXOLOTL_DO_NOT_TRACK": "1"}
    with (
        open(log or os.devnull, "w") as kept,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as run,
    ):  # fmt: skip
        assert run.stdout is not None
        output = []
        for line in run.stdout:
            for one in (kept, sys.stdout):
                print(line, end="", file=one, flush=True)
            output.append(line)
    return line_of(name, versions_of(python), "".join(output))


def line_of(name: str, versions: list[str], output: str) -> str:
    """A row of the table, of what pytest printed."""
    ends = re.findall(r"(?m)^=*\s*(.*\d+ (?:passed|failed|errors?|skipped).* in [\d.]+s)", output)
    if not ends:
        sys.exit(f"{name}: pytest did not come to an end, so that there is no result")
    counts = re.findall(r"\d+ (?:failed|errors?|passed|skipped)", ends[-1])
    failed = re.findall(r"(?m)^(?:FAILED|ERROR) \S*?([\w.]+::[^\s\[]+)", output)
    # One name for all cases of a test; a row that is longer than a line says where the rest is.
    failed = list(dict.fromkeys(failed))
    if len(failed) > 4:
        failed[3:] = [f"and {len(failed) - 3} more tests"]
    ran = "all" if ROWS[name].tests is ALL else "outside" if ROWS[name].tests is OUTSIDE else "own"
    when = datetime.date.today().isoformat()
    result = ", ".join(counts) + "".join(f"; `{one}`" for one in failed)
    return "| " + " | ".join([name, *versions, ran, when, result]) + " |"


def write_line(line: str) -> None:
    """Put a line into the table of the docs, in the place of the one with its name."""
    text = TABLE.read_text()
    name = line.split("|")[1].strip()
    table = re.search(r"(?m)^\| row \|.*\n\|[- |]+\n((?:\|.*\n)*)", text)
    if table is None:
        sys.exit(f"{TABLE} has no table of versions")
    rows = {one.split("|")[1].strip(): one for one in table[1].splitlines()}
    rows[name] = line
    order = sorted(rows, key=lambda one: list(ROWS).index(one) if one in ROWS else len(ROWS))
    body = "".join(rows[one] + "\n" for one in order)
    TABLE.write_text(text[: table.start(1)] + body + text[table.end(1) :])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("row", choices=ROWS)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--python", help="of an environment that is there")
    where.add_argument("--make", type=pathlib.Path, metavar="DIR", help="make one there")
    parser.add_argument("--log", type=pathlib.Path, help="file for what pytest prints")
    parser.add_argument("--write", action="store_true", help="into the table of docs/versions.md")
    args = parser.parse_args()
    python = args.python or make_environment(ROWS[args.row], args.make)
    line = run_row(args.row, python, args.log)
    print("| row | Python | " + " | ".join(LIBRARIES) + " | tests | on | result |")
    print(line)
    if args.write:
        write_line(line)


if __name__ == "__main__":
    main()
