"""Writes files and folders completely or not at all."""

from __future__ import annotations

import json
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

    `option` named the target, for messages. An UnusableError is raised if it cannot be written, or
    exists already and `replace` is False.
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
    """Indented JSON. NaN and infinities become null, other objects text."""
    plain = json.loads(json.dumps(content, default=str), parse_constant=lambda _: None)
    return json.dumps(plain, indent=2)
