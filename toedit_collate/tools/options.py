"""Options that several commands have, and how argparse reads their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from ..policy import OPTIONS, PRESETS, EditPolicy, Option, make_policy
from ..prior.loading import QUANTIZATIONS
from .errors import UnusableError

DATA_HELP = (
    ".jsonl, .parquet, .csv (first line: column names), .txt (documents between blank lines), "
    "several by *, a folder of save_to_disk, or a hub dataset (id, id:config or id:config:split); "
    "with the column input_ids, text, messages, or prompt and completion"
)
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


def add_reading(
    parser: Any, *, max_length: str | None = None, batch_tokens: int | None = None,
    assistant_only: bool = True, eos: bool = True,
) -> None:  # fmt: skip
    """Add how the rows of `--data` become documents to an argparse parser.

    Args:
        parser: of argparse.
        max_length: what follows the help of `--max-length`; None: there is no such option.
        batch_tokens: default of `--batch-tokens`; None: there is no such option.
        assistant_only: add `--assistant-only-loss`.
        eos: add `--no-eos`.
    """
    if max_length is not None:
        parser.add_argument(
            "--max-length",
            type=positive,
            metavar="N",
            help="cut longer documents into windows of N tokens, each scored on its own, as "
            "training does that packs by bfd_split; the first is what truncation leaves; default: "
            f"{max_length}",
        )
    if assistant_only:
        parser.add_argument(
            "--assistant-only-loss",
            action="store_true",
            help="in chats, only the assistant's turns have labels (and are edited), as with "
            "SFTConfig(assistant_only_loss=True)",
        )
    if eos:
        parser.add_argument(
            "--no-eos",
            dest="eos",
            action="store_false",
            help="put no end token behind text, which SFTTrainer and the recipes do; for training "
            "that doesn't",
        )
    if batch_tokens is not None:
        parser.add_argument(
            "--batch-tokens",
            type=positive,
            default=batch_tokens,
            metavar="N",
            help="how many to score at once, padding included; default: %(default)s",
        )


def add_prior(parser: Any, *, required: bool = False) -> None:
    """Add `--prior` and how to load it to an argparse parser; see `prior_options`."""
    group = parser.add_argument_group("prior")
    group.add_argument(
        "--prior", required=required, metavar="PATH_OR_HUB_ID", help="a causal language model"
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of its weights; default: %(default)s, the checkpoint's",
    )
    group.add_argument("--device", help="cuda, cuda:1, cpu, ...; default: the GPU, if there is one")
    group.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        help="8bit and 4bit need bitsandbytes, int8 and fp8 torchao",
    )
    group.add_argument("--adapter", metavar="PATH_OR_HUB_ID", help="a PEFT adapter to put on it")
    group.add_argument("--revision", metavar="NAME", help="of the model on the hub")
    group.add_argument(
        "--compile",
        action="store_true",
        help="by torch.compile; takes a minute, pays on a long run",
    )
    group.add_argument(
        "--prior-aligned",
        metavar="TOKENIZER",
        help="let it edit for a trainee with this tokenizer, which may be another one: the "
        "trainee's folder or hub id, or a tokenizer.json; scores then are lower bounds",
    )


def prior_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_prior` read, as `open_prior` takes it beside the name."""
    names = ("dtype", "device", "quantization", "adapter", "revision", "compile")
    options = {name: getattr(args, name) for name in names}
    return {**options, "aligned_to": args.prior_aligned}


def add_policy(parser: Any, *, more: str = "", notes: Mapping[str, str] | None = None) -> None:
    """Add `--policy`, and an option for each field of `EditPolicy`; see `policy_of`.

    Args:
        parser: of argparse.
        more: follows the description of the group.
        notes: follow the help of some fields, by name.
    """
    group = parser.add_argument_group("policy", "which tokens are edited, and how" + more)
    group.add_argument(
        "--policy",
        choices=tuple(PRESETS),
        default="paper",
        help="paper: Algorithm 1; the others are strategies of the authors' script. The options "
        "below change single fields of it; default: %(default)s",
    )
    for option in OPTIONS.values():
        if option.written:
            group.add_argument(
                f"--{option.name.replace('_', '-')}",
                dest=_dest(option.name),
                default=None,  # "not given": the preset's value stands
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
    try:
        return make_policy(args.policy, **given)
    except (TypeError, ValueError) as error:
        raise UnusableError(str(error)) from None
