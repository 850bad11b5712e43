"""Runs a test's script on two ranks."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
TESTS = HERE.parent


def run_on_two_ranks(
    script, folder: pathlib.Path, result: str, *arguments: str
) -> subprocess.CompletedProcess:
    """Run the file of a module under torchrun, with `folder` as its argument.

    Args:
        script: the module; `accelerate launch --cpu` would run a single rank of it.
        result: a file in `folder` that must be there afterwards.
        arguments: more of them.
    """
    root = TESTS.parent
    paths = [str(HERE), str(TESTS), str(root), str(root / "recipes")]
    paths.append(os.environ.get("PYTHONPATH", ""))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, script.__file__, str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if not (folder / result).exists():
        pytest.fail(f"the ranks did not finish:\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}")
    return done
