"""The options of `toedit apply`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .policies import add_policy, policy_of

_DATA = (
    "a folder of save_to_disk, .jsonl or .parquet. Best is what will be trained on, saved by "
    "trainer.train_dataset.save_to_disk(FOLDER): it has the column input_ids, tokenized (and "
    "packed) as in training, and labels. Without that column, the column text is tokenized by the "
    "prior's tokenizer"
)


def add_apply(commands: Any) -> None:
    """Add `apply` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "apply",
        help="score a dataset once, offline: fill a decision cache, or write the edited dataset",
        description="Score all documents of a dataset with the prior. With --cache, keep what is "
        "decided about them: training runs then edit them without the prior, with a fresh draw in "
        "each epoch. With --output, write the dataset with one edit, that of epoch 0, as token "
        "ids: nothing is tokenized again. A run that was killed goes on where it was, if it has "
        "--cache.",
    )
    parser.add_argument(
        "--prior", required=True, metavar="PATH_OR_HUB_ID", help="a causal language model"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help=_DATA)
    parser.add_argument("--split", metavar="NAME", help="of a folder that holds several")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder of the decision cache; may hold some"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="OUT",
        help="a new .jsonl file; or, with any other name, a new folder for datasets.load_from_disk",
    )
    parser.add_argument(
        "--batch-tokens",
        type=_positive,
        default=16_384,
        metavar="N",
        help="how many to score at once, padding included; default: %(default)s",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(0, 1),
        metavar="I/N",
        help="score the I-th of N parts of the data, counted from 0: start N processes, one for "
        "each GPU, with one --cache; default: 0/1",
    )
    _add_model(parser)
    add_policy(parser)
    parser.set_defaults(run=_run)


def _add_model(parser: Any) -> None:
    group = parser.add_argument_group("prior")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of its weights; default: %(default)s, the checkpoint's",
    )
    group.add_argument("--device", help="cuda, cuda:1, cpu, ...; default: the GPU, if there is one")
    group.add_argument(
        "--quantization",
        choices=("8bit", "4bit", "int8", "fp8"),
        help="8bit and 4bit need bitsandbytes, int8 and fp8 torchao",
    )
    group.add_argument("--adapter", metavar="PATH_OR_HUB_ID", help="a PEFT adapter to put on it")
    group.add_argument("--revision", metavar="NAME", help="of the model on the hub")
    group.add_argument(
        "--compile",
        action="store_true",
        help="by torch.compile; takes a minute, pays on a long run",
    )


def _run(args: argparse.Namespace) -> int:
    from .apply import apply  # late: `toedit --help` needs none of it
    from .settings import Settings

    return apply(
        Settings(
            prior=args.prior,
            prior_options={
                name: getattr(args, name)
                for name in ("dtype", "device", "quantization", "adapter", "revision")
            },
            compile=args.compile,
            data=args.data,
            split=args.split,
            cache=args.cache,
            output=args.output,
            batch_tokens=args.batch_tokens,
            shard=args.shard,
            policy=policy_of(args),
        )
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(
            f"must be I/N with 0 <= I < N, as in 0/8 to 7/8, got {text!r}"
        )
    return int(number), int(count)
