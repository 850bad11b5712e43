"""How commands and recipes print: no noise of other libraries, and one line for an error."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UnusableError, first_line


@contextmanager
def quiet() -> Iterator[None]:
    """Hides progress bars, warnings and logs of transformers, datasets and trl, but no errors."""
    from transformers.utils import logging as transformers_logging

    from ..data.progress import no_bars_of_datasets  # late: it imports torch

    had_bars = transformers_logging.is_progress_bar_enabled()
    disabled = logging.root.manager.disable
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), no_bars_of_datasets():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if had_bars:
            transformers_logging.enable_progress_bar()


def run_guarded(name: str, function: Callable[[], int | None]) -> int:
    """Run a command. Errors that a user can fix print one line, which begins with `name`.

    Args:
        name: of the command.
        function: returns an exit status; None is 0.

    Returns:
        The exit status: 2 if an argument or a file cannot be used, or nothing can be written.

    Raises:
        KeyboardInterrupt: Ctrl-C; Python prints one line for it, and ends with status 130.
    """
    shorten_ctrl_c()
    try:
        status = function() or 0
        sys.stdout.flush()
    except BrokenPipeError:  # `toedit ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UnusableError, OSError) as error:  # OSError: no room, no permission
        message = first_line(error) if isinstance(error, OSError) else error
        print(f"{name}: error: {message}", file=sys.stderr)
        return 2
    return status


def shorten_ctrl_c() -> None:
    """Make Python print one line instead of a traceback after Ctrl-C."""

    def hook(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, traceback)

    sys.excepthook = hook
