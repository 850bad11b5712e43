"""`toedit apply`: score a dataset once, offline."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...config.priors import open_prior
from ...data import Data, open_data
from ...data.files import whole
from ...data.progress import progress_bar
from ...data.tokens import check_first
from ...data.writing import check_output
from ...errors import UnusableError
from ...policy import EditPolicy
from ...prior.prior import Prior
from ...stores.cache import DecisionCache, Identity
from ...stores.segments import DamagedFileError
from .edit import Counts, EditedRows, Editor
from .output import Output
from .report import print_report
from .settings import Settings
from .windows import Window, windows

# The folder is as large as it must be: a training run without the prior needs all documents.
_NO_LIMIT = 2**62


def apply(settings: Settings) -> int:
    """Fill the cache, write the edited dataset, and print what was done.

    Returns:
        The exit status: 130 where it was interrupted.

    Raises:
        UnusableError: an argument can't be used, or the data can't.
    """
    if settings.cache is None and settings.output is None:
        raise UnusableError(
            "nothing to make: give --cache DIR, for training runs without the prior, or --output "
            "OUT, for one edited dataset, or both"
        )
    if settings.output is not None:
        if settings.policy.target != "both":
            raise UnusableError(
                f"--target {settings.policy.target}: --output writes one edited text, from which "
                "inputs and labels come alike; leave --target to the training run, and give --cache"
            )
        check_output(settings.output)
    data = open_data(settings.data, settings.split)
    check_first(data, settings.preparation)
    cache = None if settings.cache is None else _open_cache(settings.cache)
    prior = open_prior(settings.prior, **settings.prior_options)
    settings.preparation.set_up(prior.tokenizer)
    if cache is not None:
        _read_cache(cache, prior, settings.policy)
    editor = Editor(prior, settings.policy, cache, settings.batch_tokens)
    begin = time.monotonic()
    try:
        with _progress_bar(data, settings) as bar:
            _go_through(data, prior, editor, settings, bar)
        editor.write()
    except KeyboardInterrupt:
        editor.write()
        print(_interrupted(editor.counts, cache), file=sys.stderr)
        return 130
    print_report(settings, editor.counts, time.monotonic() - begin, prior, cache)
    return 0


def _progress_bar(data: Data, settings: Settings) -> Any:
    """A bar that counts the rows of our part of the data."""
    number, of = settings.shard

    def count() -> int | None:
        total = data.count_rows()
        return None if total is None else len(range(number, total, of))

    desc = f"part {number}/{of}" if of > 1 else None
    return progress_bar(count, "rows", desc=desc, shown=settings.shows_progress)


def _go_through(data: Data, prior: Prior, editor: Editor, settings: Settings, bar: Any) -> None:
    edited = _edited(data, prior, editor, settings, bar)
    if settings.output is None:
        for _ in edited:
            pass
        _check_any(data, editor.counts, settings)
        return
    with whole(settings.output, "--output", replace=False) as target:
        output = Output(data, prior.tokenizer, settings.preparation)
        output.write(edited, target, ending=settings.output.suffix, bar=bar)
        _check_any(data, editor.counts, settings)


def _check_any(data: Data, counts: Counts, settings: Settings) -> None:
    if not counts.rows and settings.shard == (0, 1):  # a part of little data may be empty
        raise data.error("it holds no rows; check the path")


def _edited(
    data: Data, prior: Prior, editor: Editor, settings: Settings, bar: Any
) -> Iterator[EditedRows]:
    begin = time.monotonic()
    parts = windows(
        data,
        prior,
        settings.preparation,
        batch_tokens=settings.batch_tokens,
        shard=settings.shard,
    )
    for window in parts:
        has_cache = settings.cache is not None
        progress = _Progress(bar, window, editor.counts, begin, has_cache=has_cache)
        yield from editor.edit(window, progress)


class _Progress:
    """Moves a bar of rows with each batch that is scored: a window of them is long."""

    def __init__(
        self, bar: Any, window: Window, counts: Counts, begin: float, *, has_cache: bool
    ) -> None:
        self._bar, self._counts, self._begin = bar, counts, begin
        self._has_cache = has_cache
        self._start, self._num_tokens, self._done = bar.n, len(window.tokens), 0
        self._num_rows = sum(len(batch.rows) for batch in window.batches)

    def __call__(self, num_tokens: int) -> None:
        self._done += num_tokens
        counts = self._counts
        speed = counts.tokens / (time.monotonic() - self._begin)
        known = counts.editable - counts.decided if self._has_cache else 0
        told = f", {known:,} of {counts.documents:,} documents known already" if known else ""
        self._bar.set_postfix_str(f"{speed:,.0f} tokens/s{told}", refresh=False)
        rows = self._num_rows * self._done // self._num_tokens
        self._bar.update(self._start + rows - self._bar.n)


def _open_cache(path: Path) -> DecisionCache:
    try:
        cache = DecisionCache(path, max_bytes=_NO_LIMIT)
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # before hours of scoring, not behind them
            pass
    except OSError as error:
        raise UnusableError(
            f"--cache {path}: can't be written to ({error}); name a folder, new or of a cache"
        ) from None
    return cache


def _read_cache(cache: DecisionCache, prior: Prior, policy: EditPolicy) -> None:
    cache.open(Identity.of(prior, policy))
    try:
        cache.refresh()
    except DamagedFileError as error:
        raise UnusableError(str(error)) from None


def _interrupted(counts: Counts, cache: DecisionCache | None) -> str:
    done = f"interrupted after {counts.rows:,} rows"
    if cache is None:
        return done
    return f"{done}; what was decided is kept: the same command goes on from there"
