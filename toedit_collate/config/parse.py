"""Arguments of a recipe from a YAML file and the command line, as TRL's scripts read them."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..data.demo_model import demo_config, demo_model
from ..data.demo_text import DEMO_MODELS
from ..errors import UnusableError, first_line
from .arguments import EditArguments, RunArguments
from .fields import read_fields, read_yaml
from .guard import say_in_a_line
from .models import check_shared
from .nearest import did_you_mean

_TRAINED = ("model_name_or_path", "prior")
_UNTRAINED = ("tokenizer_name", "config_name")  # of these, the weights are not needed
_NUMBER_AS_TEXT = re.compile(r"[-+]?\d+[eE][-+]?\d+")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of an example."""


def parse(
    *classes: type, args: Sequence[str] | None = None, prog: str | None = None, epilog: str = ""
) -> tuple[Any, ...]:
    """Read `--config FILE.yaml` and `--field value ...` into dataclasses, by TRL's `TrlParser`.

    Args:
        classes: the dataclasses, in the order in which `--help` shows them; no two may have a
            field of the same name.
        args: of the command line; None: this process's.
        prog: what the command is called; None: as this process was.
        epilog: ends the help.

    Returns:
        One instance of each class. A `RunArguments` among them has in `given` what was asked for.

    Raises:
        SystemExit: an argument is unknown or can't be used; it is named.
        UnusableError: the prior is to be shared, and all weights are trained.
    """
    from transformers import TrainingArguments
    from trl import TrlParser

    given = list(sys.argv[1:] if args is None else args)
    # Without a usage of its own, each error would come behind that of some 200 options.
    usage = "%(prog)s --config FILE.yaml [--field value ...]    (--help: all fields)"
    for kind in classes:
        if not hasattr(kind, "_argument_group_name"):  # a class of TRL
            kind._argument_group_name = f"{kind.__name__} of TRL"  # type: ignore[attr-defined]
    kinds: Any = list(classes)
    parser: Any = TrlParser(kinds, prog=prog, usage=usage, epilog=epilog, formatter_class=_Help)
    try:
        asked = {} if {"-h", "--help"} & set(given) else given_values(given)
        known = {word.lstrip("-") for one in parser._actions for word in one.option_strings}
        check_names(asked, {*known, "env"})  # a misspelt field is not told as a missing one
        with warnings.catch_warnings():
            # Recipes write the name of it that all supported versions of transformers know.
            warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
            parsed = parser.parse_args_and_config(list(given))
    except (OSError, TypeError, ValueError, UnusableError) as error:
        parser.error(first_line(error))
    for one in parsed:
        if isinstance(one, RunArguments):
            one.given = asked
    made_here = [
        (one, name)
        for one in parsed
        for name in _TRAINED + _UNTRAINED
        if getattr(one, name, 0) in DEMO_MODELS
    ]
    if made_here:
        (args_of_training,) = [one for one in parsed if isinstance(one, TrainingArguments)]
        with args_of_training.main_process_first(desc="training the small model"):
            for one, name in made_here:
                make = demo_config if name in _UNTRAINED else demo_model
                setattr(one, name, str(make(getattr(one, name))))
    for one in parsed:
        if isinstance(one, EditArguments):
            check_shared(one, any(getattr(other, "use_peft", False) for other in parsed))
    return parsed


def given_values(args: Sequence[str]) -> dict[str, Any]:
    """What the config file and the command line say, the latter first; defaults are left out.

    Raises:
        UnusableError: the file is no YAML, or can't be read; names the line.
    """
    fields = read_fields(args)
    path = fields.pop("config", None)
    values = read_yaml(Path(path), "--config") if path else {}
    for name, value in values.items():
        if isinstance(value, dict):
            _check_numbers(f"--config {path}: {name}", value)
    return {**values, **fields}


def _check_numbers(where: str, values: dict[str, Any]) -> None:
    """Refuse `1e-5` inside a mapping, which YAML reads as text and nobody makes a number of."""
    for name, value in values.items():
        if isinstance(value, str) and _NUMBER_AS_TEXT.fullmatch(value):
            digits, _, exponent = value.lower().partition("e")
            raise UnusableError(
                f"{where}: {name}: {value} is text to YAML; write {digits}.0e{exponent}"
            )


def check_names(given: dict[str, Any], known: set[str]) -> None:
    """See that all fields are known.

    Raises:
        UnusableError: one is not; names the nearest.
    """
    unknown = [name for name in given if name not in known]
    if unknown:
        told = [f"{name!r} is no field; {did_you_mean(name, known)}" for name in unknown]
        raise UnusableError(" ".join(told))


def start(main: Callable[[], None]) -> None:
    """Run a recipe as a script: what a user can mend is said in one line, and so is Ctrl-C.

    Raises:
        UnusableError: for one; Python then prints that line instead of a traceback.
    """
    try:
        main()
    except (UnusableError, KeyboardInterrupt, OSError) as error:
        say_in_a_line(error)
        raise
