"""Writes files and folders completely or not at all."""

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
    """A temporary path for a file or a folder, which becomes `target` if no error is raised.

    Args:
        target: its folder is made if absent.
        option: that named it, for messages: `--output`.
        replace: replace an existing file; False: raise.

    Raises:
        UnusableError: it cannot be written: no room, no permission, or it exists already.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with whole(folder / "a.txt") as place:
        ...     _ = place.write_text("all of it")
        >>> [path.name for path in folder.iterdir()]
        ['a.txt']
    """
    label = f"{option} {target}".strip()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent)
    except OSError as error:
        raise _cannot_write(label, error) from None
    try:
        place = Path(folder) / "output"
        yield place
        if not replace and (target.exists() or target.is_symlink()):  # made meanwhile
            raise UnusableError(f"{label}: exists already; remove it, or name another")
        os.replace(place, target)
    except OSError as error:
        raise _cannot_write(label, error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cannot_write(label: str, error: OSError) -> UnusableError:
    reason = error.strerror or str(error) or type(error).__name__
    return UnusableError(f"{label}: can't be written ({reason}); make room, or name another place")


def write_text(path: Path, text: str, option: str = "") -> None:
    """Write a text file, in UTF-8; see `whole`."""
    with whole(path, option) as place:
        place.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, option: str = "") -> None:
    """Write `as_json`; see `whole`."""
    write_text(path, as_json(content) + "\n", option)


def as_json(content: Any) -> str:
    """Indented JSON. NaN and infinities become null, other objects text.

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
