"""How many threads to compute with, when other programs may be using the cores too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# All threads must save this much; where they save less, another program has the cores.
_WORTH_IT = 0.75


@contextmanager
def fastest_threads() -> Iterator[None]:
    """All of torch's threads, or one where that is quicker now; afterwards as before.

    Threads wait for each other after every operation. With a core that is busy elsewhere, two
    were seen to be ten times slower than one.
    """
    before = torch.get_num_threads()
    try:
        if before > 1 and _seconds(before) > _WORTH_IT * _seconds(1):
            torch.set_num_threads(1)
        else:
            torch.set_num_threads(before)
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(num_threads: int) -> float:
    """Time of a few operations of the size that a small model has."""
    torch.set_num_threads(num_threads)
    x, weight = torch.randn(1024, 128), torch.randn(128, 512)
    started = 0.0
    for number in range(210):
        if number == 10:  # warm by now
            started = time.perf_counter()
        torch.relu(x @ weight).softmax(-1)
    return time.perf_counter() - started
