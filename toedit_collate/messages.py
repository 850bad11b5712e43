"""What others' errors say, in our messages."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    r"""The first line of an error's message; its type's name where it has none.

    Example:
        >>> first_line(ValueError("no such model\n(see the docs)")), first_line(KeyError())
        ('no such model', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
