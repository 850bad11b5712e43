"""How far a long command is: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 60.0


def progress_bar(
    count: Callable[[], int | None], unit: str, *, desc: str | None = None, shown: bool = True
) -> Any:
    """A bar of tqdm on stderr, which is gone when it is closed; in a log, lines of text.

    Args:
        count: how many there are, None where only reading tells; asked where it is shown.
        unit: what is counted, in the plural.
        desc: what stands before it.
        shown: False: show nothing.
    """
    if not shown:
        return tqdm(disable=True)
    how: dict[str, Any] = {"total": count(), "unit": f" {unit}", "desc": desc}
    if sys.stderr.isatty():
        return tqdm(leave=False, **how)
    return _Lines(mininterval=LOG_SECONDS, miniters=1, **how)


class _Lines(tqdm):  # type: ignore[type-arg]
    """Writes a line of text where tqdm would draw its bar again."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if self.n:
            has_end, before = bool(self.total), "{desc}: " if self.desc else ""
            self.bar_format = (
                f"{before}{{n_fmt}}{' of {total_fmt}' if has_end else ''}{{unit}} in {{elapsed}}"
                f"{', {remaining} to go' if has_end else ''}{{postfix}}"
            )
            print(str(self).strip(), file=sys.stderr, flush=True)
        return True

    def close(self) -> None:
        self.disable = True  # what was done, the command itself says
