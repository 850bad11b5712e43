"""Runs a command or a recipe: what a user can mend is said in one line, without a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UnusableError, first_line


def run_guarded(name: str, function: Callable[[], int | None]) -> int:
    """Run something, and say what was wrong with its arguments, its files or the disk.

    Args:
        name: before the message.
        function: returns its exit status; None is 0.

    Returns:
        The exit status: 2 where an argument or a file can't be used, or nothing can be written.

    Raises:
        KeyboardInterrupt: Ctrl-C; Python ends with a line for it, and the status 130.
    """
    try:
        status = function() or 0
        sys.stdout.flush()
    except UnusableError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        say_in_a_line(error)
        raise
    except BrokenPipeError:  # `toedit ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # no room, no permission
        print(f"{name}: error: {first_line(error)}", file=sys.stderr)
        return 2
    return status


def say_in_a_line(error: BaseException) -> None:
    """Have Python print a line instead of a traceback, if nobody catches this error.

    Args:
        error: that is on its way up.
    """
    expected = type(error)

    def hook(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        if kind is not expected:
            sys.__excepthook__(kind, error, traceback)
            return
        said = first_line(error) if str(error) else "interrupted"
        print(f"{Path(sys.argv[0]).name}: {said}", file=sys.stderr)

    sys.excepthook = hook
