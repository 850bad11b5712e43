"""Running a program of somebody else's, a chat template, so that it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class EndlessError(RuntimeError):
    """A function was stopped because it went on for too many steps."""


def with_step_limit(function: Callable[[], T], limit: int) -> T:
    """Call a function, and stop it after so many steps of Python's interpreter.

    Steps are counted, not seconds, so that a slow machine decides as a fast one does. Under a
    debugger, or coverage's tracer, nothing is counted: there can be only one of them.

    Args:
        function: to be called.
        limit: number of bytecode instructions and calls that it may take.

    Returns:
        What the function returns.

    Raises:
        EndlessError: it took more.

    Example:
        >>> with_step_limit(lambda: sum(range(10)), 1000)
        45
        >>> with_step_limit(lambda: [None for _ in iter(int, 1)], 1000)
        Traceback (most recent call last):
        toedit_collate.tokens.step_limit.EndlessError: stopped after 1000 steps
    """
    if sys.gettrace() is not None:
        return function()
    steps = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True  # a loop may stand in a single line
        frame.f_trace_lines = False
        steps += 1
        if steps > limit:
            raise EndlessError(f"stopped after {limit} steps")
        return count

    sys.settrace(count)
    try:
        return function()
    finally:
        sys.settrace(None)
