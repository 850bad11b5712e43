"""Fields of a config as a command line has them: `--field value ...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UnusableError, first_line
from ..policy import OPTIONS

# What YAML would read as true or false is a word here: `--save_strategy no`.
_WORDS = ("no", "yes", "on", "off")


def read_fields(words: Sequence[str]) -> dict[str, Any]:
    """Read options by YAML's rules: numbers, true, false, null, and JSON.

    Args:
        words: of the command line.

    Raises:
        UnusableError: a value comes before any option.

    Example:
        >>> read_fields(["--seeds", "0", "1", "--bf16=false", "--journal", "--x", '{"y": 1}'])
        {'seeds': [0, 1], 'bf16': False, 'journal': True, 'x': {'y': 1}}
    """
    import yaml

    options: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            last = options[name.replace("-", "_")] = [value] if equals else []
        elif options:
            last.append(word)
        else:
            raise UnusableError(f"{word}: not an option; write fields as --field value")
    values = {}
    for name, given in options.items():
        read = [word if word in _WORDS else yaml.safe_load(word) for word in given]
        values[name] = True if not read else read[0] if len(read) == 1 else read
    return values


def read_policy_field(name: str, text: str) -> Any:
    r"""One field of `EditPolicy` as it stands behind `name=`, by YAML's rules.

    Args:
        name: of the field.
        text: its value.

    Example:
        >>> read_policy_field("threshold", "1e-4"), read_policy_field("drop_below", "null")
        (0.0001, None)
        >>> read_policy_field("protect", r"regex:#\d+: ")
        'regex:#\\d+: '
    """
    if name == "protect" and text != "null":  # in an expression, YAML's characters mean others
        return text
    return OPTIONS[name].read(read_fields([f"--{name}={text}"])[name])


def read_yaml(path: Path, option: str) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Args:
        path: of the file.
        option: that named it, for messages.

    Raises:
        UnusableError: it can't be read, is no YAML (names the line), or holds something else.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnusableError(f"{option} {path}: can't be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UnusableError(f"{option} {path}{where}: is not YAML ({problem})") from None
    if not isinstance(values, dict):
        raise UnusableError(
            f"{option} {path}: must be a mapping (lines `field: value`), got "
            f"{type(values).__name__}"
        )
    return values
