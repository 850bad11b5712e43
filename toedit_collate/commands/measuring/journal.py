"""What a journal costs: bytes, look-ups, and its share of the edit pass."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from ...stores.journal.files import list_files
from ...stores.ragged import Array
from ...tokens.token_batch import TokenBatch
from .timing import Quartiles

LENGTHS = (256, 512, 1024)  # of documents, in tokens
SHARE = 0.001  # of the tokens that change
BATCH_SIZE = 64  # documents that are recorded, or looked up, at once
_NUM_BATCHES = 1000  # of look-ups, of documents that are known, and as many of others
_VOCABULARY = 32_000


@dataclass(frozen=True)
class JournalSize:
    """What a journal of synthetic edits takes.

    Attributes:
        length: tokens of each document.
        bytes_per_document: of the files.
        bytes_per_change: beyond the 8 of each document's key.
        megabytes_per_billion: for 10**9 tokens in such documents, in 10**6 bytes.
        lookups_per_second: of documents, in batches; half of them are known.
    """

    length: int
    bytes_per_document: float
    bytes_per_change: float
    megabytes_per_billion: float
    lookups_per_second: float


@dataclass(frozen=True)
class JournalShare:
    """What a journal adds to the edit pass of a prior.

    Attributes:
        plain_ms: milliseconds of a batch without a journal, median.
        extra: (time with a journal - time without) / time without, in pairs.
        replayed_ms: milliseconds of a batch whose edits are in the journal, median.
        num_pairs: how many pairs.
    """

    plain_ms: float
    extra: Quartiles
    replayed_ms: float
    num_pairs: int


def measure_size(num_tokens: int, length: int) -> JournalSize:
    """Write a journal of synthetic edits to a temporary folder, and look documents up in it.

    Args:
        num_tokens: of all documents.
        length: tokens of each.
    """
    generator = np.random.default_rng(0)
    num_documents = max(num_tokens // length // BATCH_SIZE, 1) * BATCH_SIZE
    shape = _NUM_BATCHES, BATCH_SIZE
    queries = list(generator.integers(0, 2**64, shape, dtype=np.uint64))
    with tempfile.TemporaryDirectory() as folder, Journal(folder) as journal:
        journal.start_generation(1, "0" * 32, EditPolicy().record())
        for step in range(num_documents // BATCH_SIZE):
            keys, counts, changes = _random_edits(generator, length)
            if len(queries) < 2 * _NUM_BATCHES:
                queries.append(keys)
            lengths = np.full(BATCH_SIZE, length)
            scored = BATCH_SIZE * (length - 1)
            journal.record(keys, lengths, counts, changes, step, scored=scored, selected=scored)
        journal.flush()
        num_bytes = sum(file.path.stat().st_size for file in list_files(Path(folder)))
        num_changes = journal.stats()[1]["changed"]
        journal.refresh()
        journal.look_up(queries[0], 1)  # reads the files
        seconds = _time(lambda: [journal.look_up(batch, 1) for batch in queries])
    beyond_keys = num_bytes - 8 * num_documents
    return JournalSize(
        length=length,
        bytes_per_document=num_bytes / num_documents,
        bytes_per_change=beyond_keys / num_changes if num_changes else float("nan"),
        megabytes_per_billion=num_bytes * 1e9 / (num_documents * length) / 1e6,
        lookups_per_second=len(queries) * BATCH_SIZE / seconds,
    )


def measure_share(prior: Prior, batches: list[Tensor], policy: EditPolicy) -> JournalShare:
    """Edit each batch without a journal, with one, and once more, from the journal.

    Args:
        prior: edits them.
        batches: (B, T) int64, each of other documents.
        policy: of the edit.
    """
    times: dict[str, list[float]] = {"plain": [], "journal": [], "replay": []}
    with tempfile.TemporaryDirectory() as folder, Journal(folder) as journal:
        for step, ids in enumerate(batches):
            runs = _runs(prior, journal, ids, policy, step)
            # In turns first and second, so that neither gains by it.
            order = ("plain", "journal") if step % 2 else ("journal", "plain")
            for run in (*order, "replay"):
                times[run].append(_time(runs[run]))
    plain, ours, replay = (np.array(of) for of in times.values())
    return JournalShare(
        plain_ms=1000 * float(np.median(plain)),
        extra=Quartiles.of(((ours - plain) / plain).tolist()),
        replayed_ms=1000 * float(np.median(replay)),
        num_pairs=len(plain),
    )


def _random_edits(generator: np.random.Generator, length: int) -> tuple[Array, Array, Array]:
    keys = generator.integers(0, 2**64, BATCH_SIZE, dtype=np.uint64)
    counts = generator.binomial(length - 1, SHARE, BATCH_SIZE)
    positions = [np.sort(generator.choice(length - 1, n, replace=False)) + 1 for n in counts]
    # Ids as frequent as words are, about.
    old, new = (np.minimum(generator.zipf(1.2, counts.sum()), _VOCABULARY) - 1 for _ in range(2))
    return keys, counts, np.stack([np.concatenate(positions), old, new], axis=1)


def _runs(
    prior: Prior, journal: Journal, ids: Tensor, policy: EditPolicy, step: int
) -> dict[str, Callable[[], Any]]:
    def with_journal() -> Any:
        return edit_with_journal(
            prior, journal, TokenBatch.of(ids, None, None, ids), policy=policy, step=step,
            num_sampled=64,
        )  # fmt: skip

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
