"""`toedit journal`: look into a journal, check it, and write the data that a generation saw."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..config import options
from ..data import find_documents, open_data, tokenize
from ..data.files import whole
from ..data.output import OUTPUT_HELP, Reviser, check_output, replay, write_rows
from ..data.progress import progress_bar
from ..data.tokens import SAVE
from ..errors import UnusableError
from ..inspection.terminal import in_columns
from ..policy import EditPolicy
from ..stores.journal import Journal
from ..stores.journal.files import Frame, list_files, read_valid, scan_files, without_void
from ..stores.segments import DamagedFileError

_BEST = (
    ". Best is the tokenized data of the training run, saved with "
    "trainer.train_dataset.save_to_disk(FOLDER); for text and chats, add --tokenizer"
)


def add_journal(commands: Any) -> None:
    """Add `journal` to the subcommands of an argparse parser."""
    parser = options.add_command(
        commands,
        "journal",
        "show what a journal holds, check it, or export the data of a generation",
        "A journal is the folder in which Journal(path) stores the changes of each generation.",
        "toedit journal show out/journal",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def add_action(name: str, run: Any, summary: str, description: str, example: str) -> Any:
        action = options.add_command(
            actions, name, summary, description, f"toedit journal {name} out/journal{example}"
        )
        action.add_argument("path", type=Path, metavar="PATH", help="folder of the journal")
        action.set_defaults(run=run, command=f"journal {name}")
        return action

    show = add_action(
        "show",
        _show,
        "what each generation did, and its first changes",
        "Print a row for each generation, its prior and policy, and the first changes. The journal "
        "may be in use.",
        " --tokenizer out --limit 5",
    )
    shown = options.Group(show, "what to show")
    shown.value("--limit", "number of changes to show", "N", options.non_negative, 20)
    shown.value("--tokenizer", "to show changed tokens as text", "PATH_OR_HUB_ID")

    add_action(
        "verify",
        _verify,
        "check every file of a journal",
        "Check all checksums, and that each document has one edit in each generation, by one prior "
        "and one policy. The exit status is 0 if the journal is sound, 1 if it is not. `export` "
        "checks the journal against the data.",
        "",
    )

    export = add_action(
        "export",
        _export,
        "write a dataset as a generation trained on it",
        "Replay the journal on the source data, and write the result, row by row in the order of "
        "the data. Labels, masks and seq_lengths follow the tokens; other columns are copied.",
        " --data out/train_dataset --output edited.jsonl",
    )
    options.add_data(export, required=True, more=_BEST)
    output = options.Group(export, "output")
    output.value("--output", OUTPUT_HELP, "OUT", Path, required=True)
    generation = "its number; default: the last; 0 is the source"
    output.value("--generation", generation, "N", options.non_negative)
    options.add_reading(export, max_length="whole documents")
    options.Group(export, "tokenizer").value(
        "--tokenizer",
        "adds the column text, decoded from the tokens; and for data of text or chats",
        "PATH_OR_HUB_ID",
    )


def check_journal(path: Path, option: str = "PATH") -> None:
    """Check that there is a journal in a folder, which `option` names.

    Raises:
        UnusableError: there is none.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UnusableError(
            f"{option} {path} {what}; name the folder that was passed to Journal(path)"
        )
    if not scan_files(path):
        raise UnusableError(
            f"{option} {path} is a folder without journal files (generation-*.safetensors); name "
            "the folder that was passed to Journal(path), and check that the run had a journal"
        )


def open_journal(path: Path, option: str = "PATH") -> Journal:
    """A journal with at least one generation, which `option` names.

    Raises:
        UnusableError: there is none, or it is damaged.
    """
    check_journal(path, option)
    try:
        journal = Journal(path)
        if not journal.generations:
            raise UnusableError(
                f"{option} {path} holds no edit yet; wait until the run has written some (it does "
                "so at each checkpoint, and at its end)"
            )
    except DamagedFileError as error:
        raise UnusableError(f"{error}. `toedit journal verify {path}` checks all files") from None
    except OSError as error:
        raise UnusableError(f"{option} {path}: can't be read ({error})") from None
    return journal


def named_tokenizer(name: str | None) -> Any:
    """The tokenizer that `--tokenizer` names, or None."""
    from ..config.priors import open_tokenizer  # late: it imports the Trainer

    return None if name is None else open_tokenizer(name, "--tokenizer")


def made_with(info: dict[str, Any]) -> str:
    """The prior and the policy of a frame: a short fingerprint, and fields that are no default."""
    fingerprint, _, precision = str(info["prior"]).partition(" ")
    prior = f"{fingerprint[:12]} {precision}".strip()
    return f"prior {prior}, {as_python(info['policy'])}"


def as_python(policy: dict[str, Any]) -> str:
    """A recorded policy as Python code, without default values."""
    default = EditPolicy().record()
    changed = (f"{n}={v!r}" for n, v in policy.items() if n not in default or default[n] != v)
    return f"EditPolicy({', '.join(changed)})"


# show


def _show(args: argparse.Namespace) -> None:
    journal = open_journal(args.path)
    tokenizer = named_tokenizer(args.tokenizer)
    frames = [frame for _, frame in read_valid(args.path) if len(frame.keys)]
    _print_table(journal)
    print()
    for generation in journal.generations:
        of = [frame.info for frame in frames if frame.info["generation"] == generation]
        print(f"generation {generation}: {' and '.join(dict.fromkeys(map(made_with, of)))}")
    if args.limit:
        _print_changes(frames, tokenizer, args.limit)


def _print_table(journal: Journal) -> None:
    rows = [["generation", "documents", "tokens", "scored", "selected", "changed", "dropped"]]
    for generation, of in journal.stats().items():
        shares = (f"{of[n]:,} ({_percent(of[f'{n}_share'])})" for n in ("selected", "changed"))
        counts = [f"{of[name]:,}" for name in ("documents", "tokens", "scored")]
        rows.append([str(generation), *counts, *shares, f"{of['dropped']:,}"])
    print(in_columns(rows))


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.3g}%"


def _print_changes(frames: list[Frame], tokenizer: Any, limit: int) -> None:
    changes = (
        (frame.info["generation"], key, change.tolist())
        for frame in frames
        for key, change in zip(np.repeat(frame.keys, frame.counts), frame.changes, strict=True)
    )
    shown = list(islice(changes, limit + 1))
    if not shown:
        print("\nNo token was changed.")
        return
    print(f"\n{'generation':>10}  {'document':16}  {'position':>8}  change")
    for generation, key, (position, old, new) in shown[:limit]:
        after = "removed" if new < 0 else _token(new, tokenizer)
        change = f"{_token(old, tokenizer)} -> {after}"
        print(f"{generation:>10}  {key:016x}  {position:>8}  {change}")
    if len(shown) > limit:
        print(f"{'...':>10}  --limit shows more")


def _token(token: int, tokenizer: Any) -> str:
    if tokenizer is None:
        return str(token)
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return f"{text!r} ({token})"


# export


def _export(args: argparse.Namespace) -> None:
    check_output(args.output)
    journal = open_journal(args.path)
    generation = journal.generations[-1] if args.generation is None else args.generation
    if generation not in (0, *journal.generations):
        raise UnusableError(
            f"--generation {generation}: not in the journal; write 0 (the source) or one of "
            f"{journal.generations}"
        )
    data, prep = open_data(args.data, args.split), options.preparation_of(args)
    tokenizer = prep.set_up(named_tokenizer(args.tokenizer))
    reviser = Reviser(data, tokenizer, prep)
    with (
        whole(args.output, "--output", replace=False) as target,
        progress_bar(data.count_rows, "rows") as bar,
    ):

        def rows() -> Iterator[Any]:
            for batch in data.batches():
                added = tokenize(data, batch, tokenizer, prep)
                documents = find_documents(data, batch).cut(prep.window)
                texts, known = replay(data, documents, journal, generation)
                yield from reviser.revise(batch, added, documents, texts, known)
                bar.update(len(batch.rows))

        write_rows(data, reviser, rows(), target, args.output.suffix, bar)
        if not reviser.counts["rows"]:
            raise data.error("it holds no rows; check the path")
        if generation and not reviser.counts["known"]:
            raise data.error(
                f"generation {generation} of the journal knows none of its documents; training "
                f"used other documents, or tokenized, truncated or packed otherwise: {SAVE}"
            )
    counts = reviser.counts
    if generation:
        others = "; the others are unchanged" * (counts["known"] < counts["documents"])
        print(
            f"{args.output}: {counts['rows']:,} rows as generation {generation} trained on them\n"
            f"{counts['documents']:,} documents, of which generation {generation} knows "
            f"{counts['known']:,}{others}\n"
            f"{counts['tokens']:,} tokens in the source: {counts['changed']:,} changed, "
            f"{counts['removed']:,} removed"
        )
    else:
        print(f"{args.output}: {counts['rows']:,} rows, the source")
    if reviser.stale:
        print(
            f"The column {', '.join(sorted(reviser.stale))} was left out: it holds the text of the "
            "source. Use --tokenizer to write the edited text as column text."
        )


# verify


def _verify(args: argparse.Namespace) -> int:
    """Print a line for each file, all problems, and a verdict; 0: the journal is sound."""
    check_journal(args.path)
    problems: list[str] = []
    try:
        files = list_files(args.path)
    except DamagedFileError as error:  # one is missing; check the others
        problems.append(str(error))
        files = scan_files(args.path)
    frames: dict[str, Frame] = {}
    for file in files:
        name = file.path.name
        try:
            frames[name] = frame = file.read()
        except (DamagedFileError, OSError) as error:
            problems.append(str(error))
            print(f"{name}: DAMAGED")
        else:
            print(f"{name}: documents: {len(frame.keys):,}, changes: {len(frame.changes):,}")
    generations: dict[int, dict[str, Frame]] = {}
    # What was recorded after the checkpoint that a killed run resumed from does not count.
    for name, frame in zip(frames, without_void(list(frames.values())), strict=True):
        if len(frame.keys):
            generations.setdefault(frame.info["generation"], {})[name] = frame
    for generation, of in sorted(generations.items()):
        problems += _contradictions(generation, of)
    for problem in problems:
        print(f"problem: {problem}")
    number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(f"{args.path}: {f'not sound, {number}' if problems else 'sound'}")
    return 1 if problems else 0


def _contradictions(generation: int, frames: dict[str, Frame]) -> Iterator[str]:
    """Whether there are several priors or policies, or several edits of a document."""
    origins = {f"{made_with(frame.info)} ({name})": frame.info for name, frame in frames.items()}
    kinds = {json.dumps([i["prior"], i["policy"]], sort_keys=True) for i in origins.values()}
    if len(kinds) > 1:
        yield (
            f"generation {generation} was made in {len(kinds)} ways: {' and '.join(origins)}; "
            "keep the files of one of the runs"
        )
    edits: dict[int, bytes] = {}
    different = set()
    for frame in frames.values():
        ends = np.cumsum(frame.counts)
        for key, count, end in zip(frame.keys.tolist(), frame.counts, ends, strict=True):
            changes = frame.changes[end - count : end].tobytes()
            if edits.setdefault(key, changes) != changes:
                different.add(key)
    print(f"generation {generation}: documents: {len(edits):,}")
    if different:
        yield (
            f"generation {generation} has two different edits of some documents "
            f"({len(different):,}; one is {min(different):016x}): replay uses the edit of the "
            "earlier step, while training may have used the other one, too; did two runs write to "
            "the journal?"
        )
