"""Fields of a config, from a command line (`--field value ...`) or a YAML file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import UnusableError, first_line

# YAML reads these as true or false. On a command line they are words: `--save_strategy no`.
_WORDS = ("no", "yes", "on", "off")


def read_fields(words: Sequence[str]) -> dict[str, Any]:
    """Read the options of a command line by YAML's rules.

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


def read_yaml(path: Path, option: str) -> dict[str, Any]:
    """The mapping in a YAML file that `option` named.

    Raises:
        UnusableError: it can't be read, or is not a mapping; names the line.
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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them.

    Example:
        >>> did_you_mean("edit_tresh", ["edit_threshold", "edit_top_k", "prior"])
        'did you mean edit_threshold?'
        >>> did_you_mean("colour", ["prior", "journal"])
        'known are journal, prior'
    """
    choices = sorted(known)
    near = get_close_matches(name, choices, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(choices)}" if len(choices) <= 30 else "see --help for all names"
