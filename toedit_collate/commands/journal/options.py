"""The options of `toedit journal`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...config.options import DATA_HELP, add_reading, preparation_of, whole

_DATA = (
    f"the source data: {DATA_HELP}. Best is what was trained on, saved by "
    "trainer.train_dataset.save_to_disk(FOLDER): it is tokenized (and packed) as in training. Text "
    "and chats are tokenized by --tokenizer"
)


def add_journal(commands: Any) -> None:
    """Add `journal` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "journal",
        help="show what a journal holds, check it, or export the data of a generation",
        description="A journal is the folder in which Journal(path) keeps what was changed in "
        "each generation of a run.",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add_show(actions)
    _add_verify(actions)
    _add_export(actions)
    _add_bench(actions)


def _add_show(actions: Any) -> None:
    parser = _add_action(
        actions,
        "show",
        "what each generation did, and its first changes",
        "Print a row for each generation, what made it, and the first changes. The journal may be "
        "in use.",
    )
    _add_generation(parser, "only this one; default: all")
    _add_tokenizer(parser, "to show changed tokens as text")
    parser.add_argument(
        "--limit",
        type=whole,
        default=20,
        metavar="N",
        help="how many changes to show; default: %(default)s",
    )
    parser.set_defaults(run=_show)


def _add_verify(actions: Any) -> None:
    parser = _add_action(
        actions,
        "verify",
        "check every file of a journal",
        "Check all checksums, and that each document has one edit in each generation, by one "
        "prior and one policy. With --data, replay every document, too. The exit status is 0 if "
        "the journal is sound, 1 if it is not.",
    )
    parser.add_argument("--data", nargs="+", default=[], metavar="FILE", help=_DATA)
    _add_tokenizer(parser, "for data with the column text instead of input_ids")
    add_reading(parser, max_length="whole documents")
    _add_split(parser)
    parser.set_defaults(run=_verify)


def _add_export(actions: Any) -> None:
    parser = _add_action(
        actions,
        "export",
        "write a dataset as a generation trained on it",
        "Replay the journal over the source data, and write the result, row by row in the order "
        "of the data. Labels, masks and seq_lengths follow the tokens; other columns are kept.",
    )
    parser.add_argument("--data", required=True, metavar="FILE", help=_DATA)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="a new .jsonl or .parquet file; or, with any other name, a new folder for "
        "datasets.load_from_disk",
    )
    _add_generation(parser, "default: the last; 0 is the source")
    _add_tokenizer(
        parser, "adds the column text, decoded from the tokens; and for data without input_ids"
    )
    parser.add_argument("--no-text", action="store_true", help="write no column text")
    add_reading(parser, max_length="whole documents")
    _add_split(parser)
    parser.set_defaults(run=_export)


def _add_bench(actions: Any) -> None:
    parser = actions.add_parser(
        "bench",
        help="measure what a journal costs on this machine",
        description="Write a synthetic journal to a temporary folder: bytes per document and "
        "change, and lookups per second. With --prior and --data, also the share of the edit pass "
        "that a journal takes, in paired runs.",
    )
    parser.add_argument(
        "--tokens",
        type=whole,
        default=20_000_000,
        metavar="N",
        help="of the synthetic documents; default: %(default)s",
    )
    parser.add_argument("--prior", metavar="PATH_OR_HUB_ID", help="a causal language model")
    parser.add_argument(
        "--data",
        metavar="FILE",
        help=f"text for it: {DATA_HELP}",
    )
    parser.set_defaults(run=_bench, command="journal bench")


def _add_action(actions: Any, name: str, summary: str, description: str) -> Any:
    parser = actions.add_parser(name, help=summary, description=description)
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of the journal")
    parser.set_defaults(command=f"journal {name}")  # its name in messages
    return parser


def _add_generation(parser: Any, meaning: str) -> None:
    parser.add_argument("--generation", type=whole, metavar="N", help=meaning)


def _add_tokenizer(parser: Any, meaning: str) -> None:
    parser.add_argument("--tokenizer", metavar="PATH_OR_HUB_ID", help=meaning)


def _add_split(parser: Any) -> None:
    parser.add_argument("--split", metavar="NAME", help="of a folder that holds several")


# Late imports: `toedit --help` needs none of this.


def _show(args: argparse.Namespace) -> int:
    from .show import show

    show(args.path, args.generation, args.tokenizer, args.limit)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from .opening import use_one_thread
    from .verify import verify

    use_one_thread()
    return (
        0 if verify(args.path, args.data, args.tokenizer, args.split, preparation_of(args)) else 1
    )


def _export(args: argparse.Namespace) -> int:
    from .export import export
    from .opening import use_one_thread

    use_one_thread()
    export(
        args.path,
        args.data,
        args.output,
        generation=args.generation,
        tokenizer=args.tokenizer,
        with_text=not args.no_text,
        split=args.split,
        prep=preparation_of(args),
    )
    return 0


def _bench(args: argparse.Namespace) -> int:
    from .bench import bench
    from .opening import use_one_thread

    use_one_thread()
    bench(args.tokens, args.prior, args.data)
    return 0
