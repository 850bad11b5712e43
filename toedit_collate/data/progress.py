"""Progress bars of long commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 60.0


def progress_bar(
    count: Callable[[], int | None], unit: str, *, desc: str | None = None, shown: bool = True
) -> Any:
    """A bar of tqdm on stderr; in a log, which is no terminal, one line per minute.

    `count` returns the total, or None if it is not known; it is called only if the bar is shown.
    """
    wait = 0.0 if sys.stderr.isatty() else LOG_SECONDS
    return tqdm(
        total=count() if shown else None, unit=f" {unit}", desc=desc, leave=False,
        disable=not shown, delay=wait, mininterval=wait or 0.1, miniters=1 if wait else None,
    )  # fmt: skip


@contextmanager
def no_bars_of_datasets() -> Iterator[None]:
    """Hides the progress bars of datasets, if it is installed."""
    if find_spec("datasets") is None:
        yield
        return
    import datasets

    had_bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if had_bars:
            datasets.enable_progress_bars()
