"""Running a program of somebody else's, a chat template, so that it ends."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class EndlessError(RuntimeError):
    """A function was stopped because it went on for too many steps."""


def with_step_limit(function: Callable[[], T], limit: int) -> T:
    """Call a function, and stop it after so many steps of Python's interpreter.

    Steps are counted, not seconds, so that a slow machine decides as a fast one does. Where all
    places of Python's monitoring are taken (before Python 3.12: under a debugger, or coverage's
    tracer), nothing is counted.

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
    return (_monitored if sys.version_info >= (3, 12) else _traced)(function, limit)


def _monitored(function: Callable[[], T], limit: int) -> T:
    """By PEP 669: from 3.12 on, a tracer set here is not told of each step of every loop."""
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined]
    tool = _free_tool(monitoring)
    if tool is None:
        return function()
    thread, steps = threading.get_ident(), 0

    def count(code: CodeType, offset: int) -> None:
        nonlocal steps
        if threading.get_ident() != thread:  # all threads are monitored
            return
        steps += 1
        if steps > limit:
            monitoring.set_events(tool, 0)  # else the cleaning up below would be stopped, too
            raise EndlessError(f"stopped after {limit} steps")

    instruction = monitoring.events.INSTRUCTION
    monitoring.register_callback(tool, instruction, count)
    monitoring.set_events(tool, instruction)
    try:
        return function()
    finally:
        monitoring.set_events(tool, 0)
        monitoring.register_callback(tool, instruction, None)
        monitoring.free_tool_id(tool)


def _free_tool(monitoring: Any) -> int | None:
    for tool in range(6):
        try:
            monitoring.use_tool_id(tool, "toedit_collate")
        except ValueError:  # somebody else's
            continue
        return tool
    return None


def _traced(function: Callable[[], T], limit: int) -> T:
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
