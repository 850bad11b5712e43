"""The lines `# plan for:` and `# plan:` at the top of a recipe's config."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ...data.files import write_text
from ...errors import UnusableError

_PLACE = re.compile(r"# plan for:\s*(\d+) x ([\w.-]+)(?:, (\S+))?\s*")
_DEFAULT = "h100"


@dataclass(frozen=True)
class Place:
    """Where a config is planned to run.

    Attributes:
        card: its name.
        gpus: how many; None: as `accelerate` says.
        accelerate: its config; None: there is none.
    """

    card: str = _DEFAULT
    gpus: int | None = None
    accelerate: Path | None = None


def read_place(path: Path) -> Place:
    """What the line `# plan for: 8 x h100, accelerate/fsdp2.yaml` says; the path starts there.

    Raises:
        UnusableError: there is such a line, and it can't be read.
    """
    for line in _lines(path):
        if line.startswith("# plan for:"):
            found = _PLACE.fullmatch(line)
            if found is None:
                raise UnusableError(
                    f"{path}: {line!r} can't be read; write `# plan for: 8 x h100, "
                    "accelerate/fsdp2.yaml`, where the file may be left out"
                )
            number, card, accelerate = found.groups()
            there = path.parent / accelerate if accelerate else None
            return Place(card, int(number), there)
    return Place()


def place_line(place: Place, gpus: int, path: Path) -> str:
    """The line that `read_place` reads."""
    if place.accelerate is None:
        return f"# plan for: {gpus} x {place.card}"
    try:
        relative = place.accelerate.resolve().relative_to(path.resolve().parent)
    except ValueError:
        relative = place.accelerate
    return f"# plan for: {gpus} x {place.card}, {relative.as_posix()}"


def header_of(path: Path) -> list[str]:
    """The lines `# plan:` that a config has."""
    return [line for line in _lines(path) if line.startswith("# plan:")]


def write_header(path: Path, lines: list[str]) -> None:
    """Put lines in the place of those that a config has; else above its first field.

    Raises:
        UnusableError: the file can't be written.
    """
    old = _lines(path)
    ours = [number for number, line in enumerate(old) if re.match(r"# plan( for)?:", line)]
    fields = [number for number, line in enumerate(old) if line and not line.startswith("#")]
    at = min(ours, default=min(fields, default=len(old)))
    kept = [line for line in old[at:] if not re.match(r"# plan( for)?:", line)]
    write_text(path, "\n".join([*old[:at], *lines, *kept]) + "\n", "--config")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UnusableError(f"--config {path}: can't be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UnusableError(f"--config {path}: is no text in UTF-8 ({error}); save it so") from None
