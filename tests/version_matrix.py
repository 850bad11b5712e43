"""One row of the table in docs/versions.md: the versions of an environment, and what passed in it.

    python tests/version_matrix.py --row axolotl --python /path/to/venv/bin/python

Each row is an environment of its own, which this makes no attempt to install: frameworks pin what
they need, and a torch for a CPU comes from elsewhere than one for a GPU.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).parents[1]
LIBRARIES = ("torch", "transformers", "accelerate", "trl", "peft", "datasets")
_CORE = [
    "tests/editing/test_edit_tokens.py", "tests/training/test_trainer.py",
    "tests/training/test_resume.py",
]  # fmt: skip
# What is decisive for each: the core in a Trainer, and the framework itself where it is one.
ROWS = {
    "oldest": _CORE,
    "newest": [*_CORE, "tests/training/test_sft.py"],
    "axolotl": [*_CORE, "tests/integrations/test_axolotl.py"],
    "llamafactory": [*_CORE, "tests/integrations/test_llamafactory.py"],
    "unsloth": _CORE,
}
_VERSIONS = (
    "import platform, importlib.metadata as m\n"
    "def version(n):\n"
    "    try: return m.version(n)\n"
    "    except m.PackageNotFoundError: return '-'\n"
    f"print(platform.python_version(), *map(version, {LIBRARIES!r}))"
)


def versions_of(python: str) -> list[str]:
    """Of Python and of the libraries; "-" where one is not installed."""
    done = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True)
    return done.stdout.split()


def run_row(row: str, python: str) -> str:
    """Run the tests of a row; returns its line of the table."""
    command = [python, "-m", "pytest", "-q", "-m", "slow or not slow", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *ROWS[row]],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "AXOLOTL_DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
    )
    last = (done.stdout.strip().splitlines() or ["nothing ran"])[-1]
    result = re.sub(r" in [\d.]+s.*", "", last).strip("= ")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    return "| " + " | ".join([row, *versions_of(python), "; ".join([result, *failed])]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", choices=ROWS, required=True)
    parser.add_argument("--python", required=True, help="of the environment")
    args = parser.parse_args()
    print("| row | Python | " + " | ".join(LIBRARIES) + " | result |")
    print(run_row(args.row, args.python))


if __name__ == "__main__":
    main()
