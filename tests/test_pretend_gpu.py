"""Devices and waits without a GPU: see `tests/helpers/pretend_gpu.py`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(shutil.which("c++") is None, reason="the pretend GPU needs a C++ compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="the pretend GPU is built on Linux only"),
]
TESTS = Path(__file__).parent
# These measure memory, run kernels or compile, or need worker processes.
NEED_A_GPU = ("memory", "kernel", "compiled", "in_place", "fp8", "workers", "16_bit")
# How often the host waits for one batch: in a training loop, and in `edit_tokens` with results on
# the CPU. Which rows are open is fetched once; where P decides nothing about them, how many are
# drawn, once more; and results on their way home, once. A journal and rows that shrink are edited
# on the host, and each of their tensors is then moved by the loop.
WAITS = {
    "paper": (1, 2),
    "half": (1, 2),
    "full": (1, 2),
    "top_p": (1, 2),
    "below": (2, 3),
    "all": (2, 3),
    "distill": (2, 3),
    "drop_below": (5, 2),
    "cache": (0, None),
    "journal": (4, None),
    # `edit_tokens` for a prior with another tokenizer, for texts of two lengths.
    "aligned, half": (3, 3),
    "aligned, all": (4, 4),
}


CODE = """
import json, sys, pytest
status = pytest.main(sys.argv[1:])
from count_waits import count_waits
print(json.dumps(count_waits()))
sys.exit(status)
"""


@pytest.fixture(scope="module")
def printed():
    """What a process with a pretend GPU prints: of the tests for a GPU, and then the waits."""
    paths = [str(TESTS), str(TESTS / "helpers"), str(TESTS.parent)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    chosen = " and ".join(f"not {word}" for word in NEED_A_GPU)
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-p", "pretend_gpu", "-m", "gpu"]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *options, "-k", chosen, "tests/test_gpu.py"],
        env=env, cwd=TESTS.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_the_tests_for_a_gpu_pass_on_a_pretended_one(printed):
    assert "passed" in printed
    assert "skipped" not in printed


def test_how_often_the_host_waits(printed):
    found = json.loads(printed.splitlines()[-1])
    assert found == {name: list(waits) for name, waits in WAITS.items()}
