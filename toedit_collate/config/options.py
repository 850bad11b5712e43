"""Options that several commands have, and how argparse reads their values."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UnusableError
from ..policy import EditPolicy
from ..prior.loading import QUANTIZATIONS
from .policies import POLICY_HELP, parse_policy

if TYPE_CHECKING:
    from ..data.tokens import Preparation

DATA_HELP = (
    ".jsonl, .parquet, .csv (first line: column names), .txt (documents between blank lines), "
    "compressed or not, several by *, a folder, or a hub dataset (id, id:config or "
    "id:config:split); with the column input_ids, text, messages, or prompt and completion"
)
DTYPES = ("auto", "float32", "bfloat16", "float16")
_LOADING = ("dtype", "device", "quantization", "adapter", "revision", "compile")


def add_command(
    commands: Any, name: str, summary: str, description: str, example: str, **more: Any
) -> Any:
    """Add a subcommand, whose help ends with an example; returns its parser."""
    return commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, 80),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **more,
    )


class Group:
    """A group of options in the help of a command. The help of an option ends with its default.

    Args:
        parser: of argparse.
        title: of the group.
        description: follows the title.
    """

    def __init__(self, parser: Any, title: str, description: str | None = None) -> None:
        self._parser = parser.add_argument_group(title, description)

    def value(
        self, name: str, meaning: str, metavar: str, read: Callable[[str], Any] = str,
        default: Any = None, **how: Any,
    ) -> None:  # fmt: skip
        """An option with a value, which `read` converts."""
        self.option(name, meaning, default, metavar=metavar, type=read, **how)

    def choice(
        self, name: str, meaning: str, choices: Sequence[str], default: str | None = None
    ) -> None:
        """An option whose value is one of some words."""
        self.option(name, meaning, default, choices=choices)

    def flag(self, name: str, meaning: str) -> None:
        """An option without a value."""
        self.option(name, meaning, False, action="store_true")

    def option(self, name: str, meaning: str, default: Any, **how: Any) -> None:
        """Any option of argparse."""
        shown = default is not None and not isinstance(default, bool)
        ending = "; default: %(default)s" if shown else ""
        self._parser.add_argument(name, help=meaning + ending, default=default, **how)


def positive(text: str) -> int:
    """A whole number from 1."""
    return _whole_number(text, 1)


def non_negative(text: str) -> int:
    """A whole number from 0."""
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least}, got {text!r}")
    return int(text)


def number_above_0(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def add_data(parser: Any, *, required: bool = False, more: str = "") -> Group:
    """Add `--data` and `--split` in a group, which is returned; `more` ends the help of --data."""
    group = Group(parser, "data")
    group.value("--data", DATA_HELP + more, "FILE", required=required)
    group.value("--split", "split of a folder or of a hub dataset that has several", "NAME")
    return group


def add_reading(parser: Any, *, max_length: str, batch_tokens: int | None = None) -> None:
    """Add how the rows of `--data` become documents: fields of `SFTConfig`.

    Args:
        parser: of argparse.
        max_length: in words, what happens without `--max-length`.
        batch_tokens: default of `--batch-tokens`; None: there is no such option.
    """
    group = Group(
        parser, "tokens", "Give the values of SFTConfig in training, to get the same tokens."
    )
    group.value(
        "--max-length",
        "cut longer documents into windows of N tokens, each scored on its own, as "
        "packing_strategy bfd_split does; the first window is what keep_start and bfd keep; "
        f"default: {max_length}",
        "N",
        positive,
    )
    group.choice(
        "--truncation-mode",
        "truncate longer documents to --max-length tokens; default: cut them into windows",
        ("keep_start", "keep_end"),
    )
    labels = "whether prompts have no labels; default: they have none"
    group.option("--completion-only-loss", labels, None, action=argparse.BooleanOptionalAction)
    group.flag(
        "--assistant-only-loss",
        "in chats, only the assistant's turns have labels (and are edited)",
    )
    group.value("--dataset-text-field", "column of text", "NAME", default="text")
    group.value("--eos-token", "default: the tokenizer's", "TOKEN")
    group.value("--chat-template-path", "a .jinja file; default: the tokenizer's", "FILE")
    no_eos = "add no end token after text; for trainers other than SFTTrainer"
    group.option("--no-eos", no_eos, True, dest="add_eos", action="store_false")
    if batch_tokens is not None:
        what = "tokens to score at once, padding included"
        group.value("--batch-tokens", what, "N", positive, batch_tokens)


def preparation_of(args: argparse.Namespace) -> Preparation:
    """The options of `add_reading`.

    Raises:
        UnusableError: options do not fit each other.
    """
    from ..data.tokens import Preparation

    return Preparation(
        **{one.name: getattr(args, one.name) for one in dataclasses.fields(Preparation)}
    )


def add_prior(parser: Any, *, required: bool = False, aligned: bool = True) -> None:
    """Add `--prior` and how to load it; see `prior_options`.

    Args:
        parser: of argparse.
        required: whether `--prior` must be given.
        aligned: whether the command supports a prior with another tokenizer.
    """
    group = Group(parser, "prior")
    name = "PATH_OR_HUB_ID"
    group.value("--prior", "a causal language model", name, required=required)
    group.choice("--dtype", "of its weights; auto: the checkpoint's", DTYPES, "auto")
    group.value("--device", "cuda, cuda:1, cpu, ...; default: the GPU, if there is one", "NAME")
    group.choice(
        "--quantization", "8bit and 4bit need bitsandbytes, int8 and fp8 torchao", QUANTIZATIONS
    )
    group.value("--adapter", "a PEFT adapter to put on it", name)
    group.value("--revision", "revision of the model on the hub", "NAME")
    group.flag("--compile", "use torch.compile, which takes a minute and pays on a long run")
    if aligned:
        group.value(
            "--prior-aligned",
            "edit for a trainee with another tokenizer, TOKENIZER: the trainee's folder or hub id, "
            "or a tokenizer.json; scores then are lower bounds",
            "TOKENIZER",
        )


def prior_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_prior` as `open_prior` takes them, without the name."""
    options = {name: getattr(args, name) for name in _LOADING}
    return {**options, "aligned_to": getattr(args, "prior_aligned", None)}


def add_seed(group: Group, of: str) -> None:
    """Add `--seed`; `of` says what of."""
    group.value("--seed", f"of {of}", "N", non_negative, 0)


def add_color(group: Group) -> None:
    """Add `--color`; see `wants_color`."""
    meaning = "auto: on a terminal, unless NO_COLOR is set"
    group.choice("--color", meaning, ("auto", "always", "never"), "auto")


def wants_color(args: argparse.Namespace) -> bool:
    """Whether to print in colours."""
    if args.color == "auto":
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return args.color == "always"


def add_policy(group: Group, *, default: str = "paper", more: str = "") -> None:
    """Add `--policy`, in any spelling; see `read_policy`."""
    group.value("--policy", POLICY_HELP + more, "POLICY", default=default)


def read_policy(text: str, **changes: Any) -> EditPolicy:
    """The policy that `--policy` names.

    Raises:
        UnusableError: it is no policy, or a value is out of range.
    """
    try:
        return parse_policy(text, **changes)
    except (TypeError, ValueError) as error:
        raise UnusableError(f"--policy: {error}") from None
