"""Progress bars of long commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 60.0


def progress_bar(
    count: Callable[[], int | None], unit: str, *, desc: str | None = None, shown: bool = True
) -> Any:
    """A bar of tqdm on stderr; in a log, which is no terminal, one line per minute.

    Args:
        count: returns the total, or None if it is not known; called only if the bar is shown.
        unit: what is counted, in the plural.
        desc: text in front of the bar.
        shown: False: show nothing.
    """
    wait = 0.0 if sys.stderr.isatty() else LOG_SECONDS
    return tqdm(
        total=count() if shown else None, unit=f" {unit}", desc=desc, leave=False,
        disable=not shown, delay=wait, mininterval=wait or 0.1, miniters=1 if wait else None,
    )  # fmt: skip
