"""`toedit journal bench`: what a journal costs, in bytes and in time, on this machine."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...editing.edit import edit_tokens
from ...editing.with_journal import edit_with_journal
from ...policy import EditPolicy
from ...prior.prior import Prior
from ...stores.journal import Journal
from ...stores.journal.files import sizes
from ...stores.ragged import Array
from ...tokens.token_batch import TokenBatch
from ...tools.datafiles import examples, open_data
from ...tools.errors import UnusableError
from ...tools.priors import open_prior

LENGTHS = (256, 512, 1024)
SHARE = 0.001  # of the tokens that change
ROWS = 8, 512  # of a batch for the prior
NUM_KEYS = 64
NUM_BATCHES = 41
_VOCABULARY = 32_000


def bench(num_tokens: int, prior: str | None, data: str | None) -> None:
    """Print bytes, lookups, and the journal's share of the edit pass of a prior.

    Args:
        num_tokens: of the synthetic documents.
        prior: path or name of a model; None: measure without one.
        data: text for it.

    Raises:
        UnusableError: an argument can't be used.
    """
    if (prior is None) != (data is None):
        raise UnusableError("--prior and --data belong together: text for the prior; give both")
    real = None if prior is None or data is None else _open_batches(prior, data)
    print(f"{num_tokens:,} tokens, {SHARE:.1%} of them changed; random keys, skewed ids")
    print("tokens/document  bytes/document  bytes/change  MB for 10^9 tokens  lookups/s")
    for length in LENGTHS:
        with tempfile.TemporaryDirectory() as folder:
            print(_size_and_speed(Path(folder), num_tokens, length), flush=True)
    print("(bytes/change beyond the 8 of each document's key; lookups in batches of 64 documents)")
    if real is not None:
        with tempfile.TemporaryDirectory() as folder:
            _print_share(Path(folder), *real)


def _size_and_speed(folder: Path, num_tokens: int, length: int) -> str:
    generator = np.random.default_rng(0)
    num_documents = max(num_tokens // length // NUM_KEYS, 1) * NUM_KEYS
    queries = list(generator.integers(0, 2**64, (1000, NUM_KEYS), dtype=np.uint64))
    with Journal(folder) as journal:
        journal.start_generation(1, "0" * 32, EditPolicy().record())
        for step in range(num_documents // NUM_KEYS):
            keys, counts, changes = _random_edits(generator, length)
            if len(queries) < 2000:  # half of them known, half not
                queries.append(keys)
            lengths = np.full(NUM_KEYS, length)
            scored = NUM_KEYS * (length - 1)
            journal.record(keys, lengths, counts, changes, step, scored=scored, selected=scored)
        journal.flush()
        num_bytes = sum(sizes(folder).values())
        num_changes = journal.stats()[1]["changed"]
        journal.refresh()
        journal.look_up(queries[0], 1)  # reads the files
        seconds = _time(lambda: [journal.look_up(batch, 1) for batch in queries])
    per_change = (num_bytes - 8 * num_documents) / num_changes if num_changes else float("nan")
    billion = num_bytes * 1e9 / (num_documents * length) / 1e6
    return (
        f"{length:>15,}{num_bytes / num_documents:>16.1f}{per_change:>14.1f}{billion:>20.1f}"
        f"{len(queries) * NUM_KEYS / seconds:>11,.0f}"
    )


def _random_edits(generator: np.random.Generator, length: int) -> tuple[Array, Array, Array]:
    keys = generator.integers(0, 2**64, NUM_KEYS, dtype=np.uint64)
    counts = generator.binomial(length - 1, SHARE, NUM_KEYS)
    positions = [np.sort(generator.choice(length - 1, n, replace=False)) + 1 for n in counts]
    # Ids as frequent as words are, about.
    old, new = (np.minimum(generator.zipf(1.2, counts.sum()), _VOCABULARY) - 1 for _ in range(2))
    return keys, counts, np.stack([np.concatenate(positions), old, new], axis=1)


def _open_batches(name: str, source: str) -> tuple[Prior, list[Tensor]]:
    """A prior, and batches of text for it."""
    data = open_data(source)
    prior = open_prior(name, needs_tokenizer=False)
    B, T = ROWS
    wanted = (NUM_BATCHES + 1) * B * T
    ids: list[int] = []
    for example in examples(data, prior.tokenizer, vocab_size=prior.vocab_size):
        ids += example.ids
        if len(ids) >= wanted:
            break
    if len(ids) < wanted:
        raise data.error(f"holds {len(ids):,} tokens, {wanted:,} are needed")
    return prior, list(torch.tensor(ids[:wanted]).view(-1, B, T))


def _print_share(folder: Path, prior: Prior, batches: list[Tensor]) -> None:
    edit_tokens(prior, batches.pop())  # warms up
    for name, policy in (
        ("paper", EditPolicy.paper()),
        ("reference_code", EditPolicy.reference_code()),
    ):
        times: dict[str, list[float]] = {"plain": [], "journal": [], "replay": []}
        with Journal(folder / name) as journal:
            for step, ids in enumerate(batches):
                runs = _runs(prior, journal, ids, policy, step)
                # In turns first and second, so that neither gains by it.
                order = ("plain", "journal") if step % 2 else ("journal", "plain")
                for run in (*order, "replay"):
                    times[run].append(_time(runs[run]))
        plain, ours, replay = (np.array(t) for t in times.values())
        low, median, high = np.quantile((ours - plain) / plain, (0.25, 0.5, 0.75))
        print(
            f"edit pass of {batches[0].shape[0]} x {batches[0].shape[1]} tokens, {name}: "
            f"{1000 * statistics.median(plain):.1f} ms; with a journal "
            f"{median:+.2%} (median of {len(plain)} pairs; quartiles {low:+.2%}, {high:+.2%}); "
            f"replayed {1000 * statistics.median(replay):.1f} ms"
        )


def _runs(
    prior: Prior, journal: Journal, ids: Tensor, policy: EditPolicy, step: int
) -> dict[str, Callable[[], Any]]:
    def with_journal() -> Any:
        source = TokenBatch.of(ids, None, None, ids)
        return edit_with_journal(prior, journal, source, policy=policy, step=step, num_sampled=64)

    return {
        "plain": lambda: edit_tokens(prior, ids, labels=ids, policy=policy, num_sampled=64),
        "journal": with_journal,
        "replay": with_journal,
    }


def _time(function: Callable[[], Any]) -> float:
    """Seconds of this process (of the clock, where a GPU works)."""
    clock = time.process_time
    if torch.cuda.is_available():
        clock = time.perf_counter
        torch.cuda.synchronize()
    begin = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - begin
