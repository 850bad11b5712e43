"""The options of `toedit apply`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ...config.options import (
    add_data,
    add_policy,
    add_prior,
    add_reading,
    policy_of,
    preparation_of,
    prior_options,
)

_BEST = (
    ". Best is what will be trained on, saved by trainer.train_dataset.save_to_disk(FOLDER): it "
    "is tokenized (and packed) as in training. Text and chats are tokenized by the prior's "
    "tokenizer"
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
    add_data(parser, required=True, more=_BEST)
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder of the decision cache; may hold some"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="OUT",
        help="a new .jsonl or .parquet file; or, with any other name, a new folder for "
        "datasets.load_from_disk",
    )
    add_reading(parser, max_length="whole documents", batch_tokens=16_384)
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="score the I-th of N equal parts of the data, counted from 0: start N processes, one "
        "for each GPU, with one --cache; default: the process's own part under torchrun, "
        "accelerate launch or srun (--output then gets -0000I-of-0000N in its name), else all",
    )
    add_prior(parser, required=True)
    add_policy(
        parser,
        more="; the training run must have the same",
        notes=dict.fromkeys(("seed", "redraw"), "; only --output depends on it"),
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from .apply import apply  # late: `toedit --help` needs none of it
    from .parts import part_of_process
    from .settings import Settings

    shard, output, device = args.shard, args.output, args.device
    ours = None if shard is not None else part_of_process(os.environ)
    if ours is not None:
        shard, device = (ours.number, ours.count), device or ours.device()
        output = output and output.with_stem(f"{output.stem}-{ours.number:05}-of-{ours.count:05}")
    return apply(
        Settings(
            prior=args.prior,
            prior_options={**prior_options(args), "device": device},
            data=args.data,
            split=args.split,
            cache=args.cache,
            output=output,
            batch_tokens=args.batch_tokens,
            preparation=preparation_of(args),
            shard=shard or (0, 1),
            shows_progress=ours is None or ours.local == 0,  # one bar on a terminal
            policy=policy_of(args),
        )
    )


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(
            f"must be I/N with 0 <= I < N, as in 0/8 to 7/8, got {text!r}"
        )
    return int(number), int(count)
