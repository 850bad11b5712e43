"""Errors that commands and recipes print in one line."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class UnusableError(Exception):
    """An argument or file that can't be used: what is wrong, the value seen, how to fix it."""
