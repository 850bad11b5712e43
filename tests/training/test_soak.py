"""Memory and file descriptors over tens of thousands of batches (`pytest -m slow -s` prints them).

On the way are a collator with a cache, one with a journal, and one that scores each batch anew.
"""

import gc
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_llama
from transformers import default_data_collator

from toedit_collate import DecisionCache, EditPolicy, Journal, Prior, ToEditCollator

POLICY = EditPolicy(region="below", threshold=0.5, exclude_original=True)
TEXTS = torch.randint(5, 64, (6, 12), generator=torch.Generator().manual_seed(0)).tolist()

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")


def look():
    """What this process holds; the first is in KB, and where there is a leak it grows."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "KB of memory": pages * resource.getpagesize() / 1024,
        "KB of peak memory": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss),
        "allocated blocks": sys.getallocatedblocks(),
        "tracked objects": len(gc.get_objects()),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def soak(folder, num_batches, samples):
    """The same few documents over and over; stores are written and read anew every 20 batches.

    Returns how much more of everything there is per batch, over the second half of them.
    """
    prior = Prior(make_llama(vocab_size=64))
    journal, cache = Journal(folder / "journal"), DecisionCache(folder / "cache")

    def collator(**stores):
        return ToEditCollator(prior, POLICY, base_collator=default_data_collator, **stores)

    plain, journaled, cached = collator(), collator(journal=journal), collator(cache=cache)
    every, found = num_batches // samples, []
    for step in range(num_batches):
        features = [{"input_ids": TEXTS[(step + i) % 6]} for i in range(2)]
        for one in (journaled, cached):
            assert one(features)["input_ids"].shape == (2, 12)
        if step % 20 == 19:
            assert plain(features)["input_ids"].shape == (2, 12)
            journal.close()
            journal.refresh()
            cache.flush()
            cache.refresh()
        if step % 1000 == 99:  # safetensors keeps a few ints: see `read_segment`
            DecisionCache(folder / "cache").prior()
        if step % every == every - 1:
            found.append(look())
    late = found[len(found) // 2 :]
    assert len(list((folder / "journal").glob("*.safetensors"))) == 1
    steps = np.arange(len(late)) * every
    return {name: np.polyfit(steps, [one[name] for one in late], 1)[0] for name in late[0]}


def format_slopes(slopes, num_batches):
    return f"\n{num_batches} batches, more per batch: " + ", ".join(
        f"{value:+.5f} {name}" for name, value in slopes.items()
    )


@pytest.mark.slow
def test_files_stay_flat(tmp_path):
    assert abs(soak(tmp_path, 200, samples=5)["descriptors"]) < 1e-9


@pytest.mark.slow
def test_memory_and_files_stay_flat(tmp_path, capsys):
    slopes = soak(tmp_path, 50_000, samples=100)
    with capsys.disabled():
        print(format_slopes(slopes, 50_000))
    assert abs(slopes["descriptors"]) < 1e-9
    # Anything that is kept of a batch, or of a refresh every 20 of them, would be more.
    assert slopes["allocated blocks"] < 0.2
    assert slopes["KB of memory"] < 0.02
