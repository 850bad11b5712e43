"""Arguments of a recipe from a YAML file and the command line, as TRL's scripts read them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..tools.demo_model.kept import demo_model
from ..tools.demo_model.source import DEMO
from ..tools.errors import UnusableError
from ..tools.fields import read_fields
from ..tools.nearest import did_you_mean
from .arguments import RunArguments

_MODELS = ("model_name_or_path", "prior", "tokenizer_name", "config_name")


def parse(
    *classes: type, args: Sequence[str] | None = None, prog: str | None = None
) -> tuple[Any, ...]:
    """Read `--config FILE.yaml` and `--field value ...` into dataclasses, by TRL's `TrlParser`.

    Args:
        classes: the dataclasses; no two may have a field of the same name.
        args: of the command line; None: this process's.
        prog: what the command is called; None: as this process was.

    Returns:
        One instance of each class. A `RunArguments` among them has in `given` what was asked for.

    Raises:
        SystemExit: an argument is unknown or can't be used; it is named.
    """
    from transformers import TrainingArguments
    from trl import TrlParser

    given = list(sys.argv[1:] if args is None else args)
    # Without a usage of its own, each error would come behind that of some 200 options.
    usage = "%(prog)s --config FILE.yaml [--field value ...]    (--help: all fields)"
    parser: Any = TrlParser(list(classes), prog=prog, usage=usage)  # type: ignore[arg-type]
    try:
        asked = {} if {"-h", "--help"} & set(given) else given_values(given)
        _check_names(asked, parser)  # a misspelt field is not told as a missing one
        parsed = parser.parse_args_and_config(list(given))
    except (OSError, TypeError, ValueError, UnusableError) as error:
        parser.error(str(error))
    for one in parsed:
        if isinstance(one, RunArguments):
            one.given = asked
    made_here = [(one, name) for one in parsed for name in _MODELS if getattr(one, name, 0) == DEMO]
    if made_here:
        (args_of_training,) = [one for one in parsed if isinstance(one, TrainingArguments)]
        with args_of_training.main_process_first(desc="training the small model"):
            folder = str(demo_model())
        for one, name in made_here:
            setattr(one, name, folder)
    return parsed


def _check_names(asked: dict[str, Any], parser: Any) -> None:
    """Raise `UnusableError` for each name that is no field, with the nearest that is one."""
    known = {word.lstrip("-") for action in parser._actions for word in action.option_strings}
    unknown = [name for name in asked if name not in {*known, "env"}]  # env: of TRL's configs
    if unknown:
        told = [f"{name!r} is no field; {did_you_mean(name, known)}" for name in unknown]
        raise UnusableError(" ".join(told))


def given_values(args: Sequence[str]) -> dict[str, Any]:
    """What the config file and the command line say, the latter first; defaults are left out."""
    import yaml

    fields = read_fields(args)
    path = fields.pop("config", None)
    return {**(yaml.safe_load(Path(path).read_text()) if path else {}), **fields}
