"""Write it whole or not at all: files and folders get their names once they are complete."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UnusableError


@contextmanager
def whole(target: Path, option: str = "", *, replace: bool = True) -> Iterator[Path]:
    """A place beside `target` to write a file or a folder to; it becomes `target` in the end.

    What was begun is removed where an error (or Ctrl-C) ends it.

    Args:
        target: its folder is made if absent.
        option: that named it, for the message: `--output`.
        replace: take the place of a file that is there; False: leave it, and raise.

    Raises:
        UnusableError: it can't be written: no room, no permission, or a file that must stay.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with whole(folder / "a.txt") as place:
        ...     _ = place.write_text("all of it")
        >>> [path.name for path in folder.iterdir()]
        ['a.txt']
    """
    said = f"{option} {target}".strip()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent)
    except OSError as error:
        raise _cannot_write(said, error) from None
    try:
        place = Path(folder) / "output"
        yield place
        if not replace and (target.exists() or target.is_symlink()):  # another came meanwhile
            raise UnusableError(f"{said}: is there already; remove it, or name another")
        os.replace(place, target)
    except OSError as error:
        raise _cannot_write(said, error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cannot_write(said: str, error: OSError) -> UnusableError:
    reason = error.strerror or str(error) or type(error).__name__
    return UnusableError(f"{said}: can't be written ({reason}); make room, or name another place")


def write_text(path: Path, text: str, option: str = "") -> None:
    """Write a text file, in UTF-8.

    Raises:
        UnusableError: it can't be written.
    """
    with whole(path, option) as place:
        place.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, option: str = "") -> None:
    """Write numbers and names as JSON that any reader takes: NaN and infinities become null.

    Raises:
        UnusableError: it can't be written.
    """
    write_text(path, as_json(content) + "\n", option)


def as_json(content: Any) -> str:
    """JSON, indented; what JSON has no word for becomes text, NaN and infinities null.

    Example:
        >>> as_json([1.5, float("nan"), Path("a")]).split()
        ['[', '1.5,', 'null,', '"a"', ']']
    """
    return json.dumps(_finite(content), indent=2, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
