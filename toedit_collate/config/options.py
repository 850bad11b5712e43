"""Options that several commands have, and how argparse reads their values."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import UnusableError
from ..policy import OPTIONS, EditPolicy, Option
from ..prior.loading import QUANTIZATIONS
from .policies import POLICY_HELP, parse_policy

if TYPE_CHECKING:
    from ..data.tokens import Preparation

DATA_HELP = (
    ".jsonl, .parquet, .csv (first line: column names), .txt (documents between blank lines), "
    "compressed or not, several by *, a folder, or a hub dataset (id, id:config or "
    "id:config:split); with the column input_ids, text, messages, or prompt and completion"
)
_DEFAULT = "; default: %(default)s"
DTYPES = ("auto", "float32", "bfloat16", "float16")


def positive(text: str) -> int:
    """A whole number from 1."""
    return _whole(text, 1)


def whole(text: str) -> int:
    """A whole number from 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or not least <= int(text) < 10**15:
        bound = "above 0" if least else "from 0"
        raise argparse.ArgumentTypeError(f"must be a whole number {bound}, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """A seed that numpy takes, too: at most 32 bits."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number in [0, 2**32), got {text!r}")
    return int(text)


def number_above_0(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, as in 0.4, got {text!r}")
    return value


def parts(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """Some of `known`, between commas, in their own order."""

    def read(text: str) -> tuple[str, ...]:
        given = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise argparse.ArgumentTypeError(
                f"no part {(unknown or [text])[0]!r}; write some of {','.join(known)}"
            )
        return tuple(name for name in known if name in given)

    return read


def add_data(parser: Any, *, required: bool = False, more: str = "") -> None:
    """Add `--data` and `--split` to an argparse parser; `more` follows the formats in its help."""
    parser.add_argument("--data", required=required, metavar="FILE", help=DATA_HELP + more)
    parser.add_argument(
        "--split", metavar="NAME", help="of a folder that holds several, or of a hub dataset"
    )


def add_reading(parser: Any, *, max_length: str, batch_tokens: int | None = None) -> None:
    """Add how the rows of `--data` become documents to an argparse parser: fields of `SFTConfig`.

    Args:
        parser: of argparse.
        max_length: what follows the help of `--max-length`.
        batch_tokens: default of `--batch-tokens`; None: there is no such option.
    """
    group = parser.add_argument_group(
        "tokens", "give what SFTConfig has in training, so that rows become the same tokens"
    )
    group.add_argument(
        "--max-length",
        type=positive,
        metavar="N",
        help="cut longer documents into windows of N tokens, each scored on its own, as "
        "packing_strategy bfd_split does; the first window is what keep_start and bfd keep; "
        f"default: {max_length}",
    )
    group.add_argument(
        "--truncation-mode",
        choices=("keep_start", "keep_end"),
        help="truncate longer documents to --max-length tokens; default: cut them into windows",
    )
    group.add_argument(
        "--completion-only-loss",
        action=argparse.BooleanOptionalAction,
        help="whether prompts have no labels; default: they have none",
    )
    group.add_argument(
        "--assistant-only-loss",
        action="store_true",
        help="in chats, only the assistant's turns have labels (and are edited)",
    )
    group.add_argument(
        "--dataset-text-field", default="text", metavar="NAME", help="column of text"
    )
    group.add_argument("--eos-token", metavar="TOKEN", help="default: the tokenizer's")
    group.add_argument("--chat-template-path", metavar="FILE", help="a .jinja file")
    group.add_argument(
        "--no-eos",
        dest="add_eos",
        action="store_false",
        help="put no end token after text; for trainers other than SFTTrainer",
    )
    if batch_tokens is not None:
        parser.add_argument(
            "--batch-tokens",
            type=positive,
            default=batch_tokens,
            metavar="N",
            help="how many to score at once, padding included; default: %(default)s",
        )


def preparation_of(args: argparse.Namespace) -> Preparation:
    """What `add_reading` read.

    Raises:
        UnusableError: options do not fit each other.
    """
    from ..data.tokens import Preparation  # late: `toedit --help` needs no torch

    return Preparation(
        **{one.name: getattr(args, one.name) for one in dataclasses.fields(Preparation)}
    )


def add_prior(
    parser: Any, *, required: bool = False, leave_out: tuple[str, ...] = (), **notes: str
) -> Any:
    """Add `--prior` and how to load it to an argparse parser; see `prior_options`.

    Args:
        parser: of argparse.
        required: whether `--prior` must be given.
        leave_out: options that the command has no use for, as in "adapter".
        notes: follow the help of some options, by name.

    Returns:
        The group of options.
    """
    group = parser.add_argument_group("prior")

    def add(name: str, help_text: str, **how: Any) -> None:
        if name not in leave_out:
            option = f"--{name.replace('_', '-')}"
            group.add_argument(option, help=help_text + notes.get(name, ""), **how)

    add("prior", "a causal language model", required=required, metavar="PATH_OR_HUB_ID")
    add(
        "dtype",
        "of its weights; default: %(default)s, the checkpoint's",
        choices=DTYPES,
        default="auto",
    )
    add("device", "cuda, cuda:1, cpu, ...; default: the GPU, if there is one", metavar="NAME")
    add(
        "quantization",
        "8bit and 4bit need bitsandbytes, int8 and fp8 torchao",
        choices=QUANTIZATIONS,
    )
    add("adapter", "a PEFT adapter to put on it", metavar="PATH_OR_HUB_ID")
    add("revision", "of the model on the hub", metavar="NAME")
    add("compile", "by torch.compile; takes a minute, pays on a long run", action="store_true")
    add(
        "prior_aligned",
        "let it edit for a trainee with this tokenizer, which may be another one: the "
        "trainee's folder or hub id, or a tokenizer.json; scores then are lower bounds",
        metavar="TOKENIZER",
    )
    return group


def prior_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_prior` read, as `open_prior` takes it beside the name."""
    names = ("dtype", "device", "quantization", "adapter", "revision", "compile")
    options = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return {**options, "aligned_to": getattr(args, "prior_aligned", None)}


def add_seed(parser: Any, of: str) -> None:
    """Add `--seed` to an argparse parser; `of` says what of."""
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help=f"of {of}; default: %(default)s"
    )


def add_color(parser: Any) -> None:
    """Add `--color` to an argparse parser; see `wants_color`."""
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: on a terminal, unless NO_COLOR is set; default: %(default)s",
    )


def wants_color(args: argparse.Namespace) -> bool:
    """Whether to print in colours."""
    if args.color == "auto":
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return args.color == "always"


def add_policy_name(parser: Any, *, default: str, more: str = "") -> None:
    """Add `--policy` alone, in any spelling, to an argparse parser; see `read_policy`."""
    parser.add_argument(
        "--policy", default=default, metavar="POLICY", help=POLICY_HELP + more + _DEFAULT
    )


def read_policy(text: str, **changes: Any) -> EditPolicy:
    """The policy that `--policy` names; what is wrong is said in one line.

    Raises:
        UnusableError: it can't be read, or a value is out of its range.
    """
    try:
        return parse_policy(text, **changes)
    except (TypeError, ValueError) as error:
        raise UnusableError(f"--policy: {error}") from None


def add_policy(parser: Any, *, more: str = "", notes: Mapping[str, str] | None = None) -> None:
    """Add `--policy`, and an option for each field of `EditPolicy`; see `policy_of`.

    Args:
        parser: of argparse.
        more: follows the description of the group.
        notes: follow the help of some fields, by name.
    """
    group = parser.add_argument_group("policy", "which tokens are edited, and how" + more)
    add_policy_name(group, default="paper", more="; the options below change single fields of it")
    for option in OPTIONS.values():
        group.add_argument(
            f"--{option.name.replace('_', '-')}",
            dest=_dest(option.name),
            default=None,  # "not given": the policy's value stands
            help=option.help + (notes or {}).get(option.name, ""),
            **_reading(option),
        )


def _reading(option: Option) -> dict[str, Any]:
    """How argparse reads the value of a field."""
    if option.choices:
        return {"choices": option.choices}
    if option.kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    words = {int: "N", float: "X", str: "TEXT"}
    reading = {"type": option.kind, "metavar": words[option.kind]}
    return {**reading, "nargs": "+"} if option.is_list else reading


def _dest(name: str) -> str:
    return f"policy_{name}"


def policy_of(args: argparse.Namespace) -> EditPolicy:
    """The policy that was asked for.

    Raises:
        UnusableError: a value is out of its range.
    """
    given = {
        name: getattr(args, _dest(name))
        for name in OPTIONS
        if getattr(args, _dest(name), None) is not None
    }
    policy = read_policy(args.policy)
    try:
        return policy.replace(**given)
    except (TypeError, ValueError) as error:
        raise UnusableError(str(error)) from None
