"""Arguments of a recipe or of `toedit sft`, from a YAML file and the command line."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.demo_model import demo_config, demo_model
from ..data.demo_text import DEMO_MODELS
from ..errors import UnusableError, first_line
from .arguments import EditArguments
from .fields import did_you_mean, read_fields, read_yaml
from .priors import check_shared

_TRAINED = ("model_name_or_path", "prior")
_UNTRAINED = ("tokenizer_name", "config_name")  # of these, the weights are not needed


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of an example."""


def parse(
    *classes: type, args: Sequence[str] | None = None, prog: str | None = None, epilog: str = ""
) -> tuple[Any, ...]:
    """Read `--config FILE.yaml` and `--field value ...` into dataclasses, with TRL's `TrlParser`.

    Args:
        classes: the dataclasses, in the order of `--help`; no field may be in two of them.
        args: of the command line; None: those of this process.
        prog: name of the command; None: that of this process.
        epilog: ends the help.

    Returns:
        An instance of each class. If a class has the attribute `given`, it holds all fields that
        were set.

    Raises:
        SystemExit: an argument is unknown or cannot be used.
        UnusableError: the prior is shared, and all weights are trained.
    """
    from transformers import TrainingArguments
    from trl import TrlParser

    words = list(sys.argv[1:] if args is None else args)
    # argparse's own usage would list some 200 options before each error.
    usage = "%(prog)s --config FILE.yaml [--field value ...]    (--help: all fields)"
    kinds: Any = list(classes)
    parser: Any = TrlParser(kinds, prog=prog, usage=usage, epilog=epilog, formatter_class=_Help)
    try:
        given = {} if {"-h", "--help"} & set(words) else given_values(words)
        known = {word.lstrip("-") for one in parser._actions for word in one.option_strings}
        check_names(given, {*known, "env"})  # before TRL reports a misspelt field as missing
        with warnings.catch_warnings():
            # Recipes use the name that all supported versions of transformers know.
            warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
            parsed = parser.parse_args_and_config(words)
    except (OSError, TypeError, ValueError, UnusableError) as error:
        parser.error(first_line(error))
    for one in parsed:
        if hasattr(one, "given"):
            one.given = given
    demos = [
        (one, name)
        for one in parsed
        for name in _TRAINED + _UNTRAINED
        if getattr(one, name, 0) in DEMO_MODELS
    ]
    if demos:
        (training,) = [one for one in parsed if isinstance(one, TrainingArguments)]
        with training.main_process_first(desc="training the small model"):
            for one, name in demos:
                make = demo_config if name in _UNTRAINED else demo_model
                setattr(one, name, str(make(getattr(one, name))))
    for one in parsed:
        if isinstance(one, EditArguments):
            check_shared(one, any(getattr(other, "use_peft", False) for other in parsed))
    return parsed


def given_values(args: Sequence[str]) -> dict[str, Any]:
    """The fields that the command line, or else the config file, sets.

    Raises:
        UnusableError: the file can't be read, or is no YAML; names the line.
    """
    fields = read_fields(args)
    path = fields.pop("config", None)
    values = read_yaml(Path(path), "--config") if path else {}
    return {**values, **fields}


def check_names(given: dict[str, Any], known: set[str]) -> None:
    """Check that all fields are known.

    Raises:
        UnusableError: one is not; names the nearest known one.
    """
    errors = [f"{n!r} is not a field; {did_you_mean(n, known)}" for n in given if n not in known]
    if errors:
        raise UnusableError(" ".join(errors))
