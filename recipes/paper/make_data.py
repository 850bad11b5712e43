"""Make the paper's training data from public sources, as JSON lines that the configs name.

python recipes/paper/make_data.py medicine openorca [--folder data]      (--list: all names)

It streams, counts documents, characters and tokens, and stops at the corpus's number of tokens. A
run that was killed goes on where it was. `corpora.yaml` has the sources.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes: `common`

from common import load_rows
from common.formats import FORMATS

from toedit_collate.config.console import run_guarded
from toedit_collate.data import parse_source
from toedit_collate.data.files import write_json
from toedit_collate.errors import UnusableError

CORPORA = Path(__file__).parent / "corpora.yaml"
BUFFER = 10_000  # rows of a stream that are shuffled
CHUNK = 1000  # rows that are read, then written
Row = dict[str, Any]


def make_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="of a corpus")
    add("--list", action="store_true", help="print the names, with what each corpus is")
    add("--folder", type=Path, default=Path("data"), help="writes FOLDER/NAME.jsonl")
    add("--source", help="read this instead of the public source; a file with its columns")
    add("--tokens", type=float, help="stop after so many tokens; default: the corpus's number")
    add("--tokenizer", default="allenai/OLMo-1B-hf", help="counts the tokens")
    add("--seed", type=int, default=0, help="of the order of rows where tokens are limited")
    return parser


def rows_of(corpus: Row, source: str | None, seed: int) -> Any:
    """The rows of a corpus as a stream; in random order where the corpus has a number of tokens."""
    from datasets import interleave_datasets

    wanted = source or corpus["source"]
    is_plain = "reading" in corpus.get("convert", {})
    if isinstance(wanted, dict):
        streams = [_stream(name, is_plain) for name in wanted]
        total = sum(wanted.values())
        shares = [number / total for number in wanted.values()]
        rows = interleave_datasets(
            streams,
            probabilities=shares,
            seed=seed,
            stopping_strategy="all_exhausted_without_replacement",
        )
    else:
        rows = _stream(wanted, is_plain)
    return rows.shuffle(seed=seed, buffer_size=BUFFER) if "tokens" in corpus else rows


def _stream(source: str, is_plain: bool) -> Any:
    from datasets import load_dataset

    if is_plain or "://" in source:
        kind = "text" if is_plain else "json"
        return load_dataset(kind, data_files=source, split="train", streaming=True)
    return load_rows(*parse_source(source), streaming=True)


def converter(corpus: Row) -> Callable[[list[Row]], Iterable[Row]]:
    """What makes rows to train on of the rows of a source."""
    convert = corpus.get("convert", {"join": ["text"]})
    if "format" in convert:
        return FORMATS[convert["format"]].convert
    if "reading" in convert:
        return lambda rows: (row for line in rows for row in reading(json.loads(line["text"])))
    return lambda rows: ({"text": " ".join(row[c] or "" for c in convert["join"])} for row in rows)


def reading(entries: list[Row]) -> Iterator[Row]:
    """Texts of Instruction Pre-Training: contexts, each with its questions and answers.

    Args:
        entries: each has `context`, `QA_list` (of mappings with Q and A), and `inherit_from_prev`:
            True: it belongs to the same text as the entry before.
    """
    parts: list[str] = []
    for entry in entries:
        if parts and not entry.get("inherit_from_prev"):
            yield {"text": "\n\n".join(parts)}
            parts = []
        parts.append(entry["context"])
        parts += [f"Question: {one['Q']}\nAnswer: {one['A']}" for one in entry["QA_list"]]
    if parts:
        yield {"text": "\n\n".join(parts)}


def text_of(row: Row) -> str:
    """All that a row says, to count its tokens."""
    messages = row.get("messages") or [*row.get("prompt", []), *row.get("completion", [])]
    return row["text"] if "text" in row else "\n".join(one["content"] for one in messages)


def make(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Write one corpus; returns its counts.

    Raises:
        UnusableError: a file that is to be continued was begun with other settings.
    """
    from transformers import AutoTokenizer

    corpus = read_corpora()[name]
    limit = args.tokens or corpus.get("tokens") or float("inf")
    tokenizer: Any = AutoTokenizer.from_pretrained(args.tokenizer)
    convert, out = converter(corpus), args.folder / f"{name}.jsonl"
    settings = {"source": args.source or corpus["source"], "tokens": limit, "seed": args.seed,
                "tokenizer": args.tokenizer}  # fmt: skip
    path = args.folder / f"{name}.state.json"
    state = {"rows": 0, "bytes": 0, "documents": 0, "characters": 0, "count": 0, "done": False}
    state["settings"] = json.loads(json.dumps(settings, default=str).replace("Infinity", "null"))
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["settings"] != state["settings"]:
            raise UnusableError(
                f"{out} was begun with {before['settings']}, not with {state['settings']}; "
                f"remove it and {path}, or use the same options"
            )
        state = before
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = iter(rows_of(corpus, args.source, args.seed).skip(state["rows"]))
    with out.open("r+b" if state["bytes"] else "wb") as file:
        file.truncate(state["bytes"])  # what was written after the last state
        file.seek(state["bytes"])
        while not state["done"]:
            chunk = list(islice(rows, CHUNK))
            made = list(convert(chunk))
            texts = [text_of(row) for row in made]
            encoded = tokenizer(texts, verbose=False)["input_ids"] if texts else []
            state["done"] = not chunk
            for row, text, ids in zip(made, texts, encoded, strict=True):
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                state["documents"] += 1
                state["characters"] += len(text)
                state["count"] += len(ids)
                if state["count"] >= limit:
                    state["done"] = True
                    break
            file.flush()
            os.fsync(file.fileno())
            state |= {"rows": state["rows"] + len(chunk), "bytes": file.tell()}
            write_json(path, state)
    known = f" (the whole set has {corpus['rows']:,} rows)" if "rows" in corpus else ""
    counts = ", ".join(
        f"{state[key]:,} {word}"
        for key, word in (
            ("documents", f"documents of {state['rows']:,} rows{known}"),
            ("characters", "characters"),
            ("count", f"tokens of {args.tokenizer}"),
        )
    )
    print(f"{out}: {counts}")
    return state


def read_corpora() -> dict[str, Row]:
    """The corpora, by name."""
    corpora: dict[str, Row] = yaml.safe_load(CORPORA.read_text(encoding="utf-8"))
    return corpora


def run(args: argparse.Namespace) -> None:
    corpora = read_corpora()
    unknown = [name for name in args.names if name not in corpora]
    if unknown or not (args.names or args.list):
        raise UnusableError(f"name corpora out of {', '.join(corpora)}; got {unknown or 'none'}")
    if args.list:
        for name, corpus in corpora.items():
            print(f"{name}: {corpus['about']}")
    for name in args.names:
        make(name, args)


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return run_guarded("make_data.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
