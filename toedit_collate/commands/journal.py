"""`toedit journal`: look into a journal, check it, and write the data that a generation saw."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..config import options
from ..data import open_data
from ..data.documents import check_known
from ..data.files import whole
from ..data.progress import progress_bar
from ..data.revise import Reviser, replay
from ..data.writing import OUTPUT_HELP, check_output, write_rows
from ..errors import UnusableError
from ..inspection.terminal import in_columns
from ..policy import EditPolicy
from ..stores.journal import Journal
from ..stores.journal.files import SegmentFile, list_files, read_valid, scan_files, without_void
from ..stores.journal.frames import Frame
from ..stores.segments import DamagedFileError

_BEST = (
    ". Best is the data that was trained on, saved with "
    "trainer.train_dataset.save_to_disk(FOLDER): it is tokenized (and packed) as in training. Text "
    "and chats are tokenized by --tokenizer"
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
    shown.value("--generation", "only this one; default: all", "N", options.non_negative)
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
    output.flag("--no-text", "write no column text")
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
    if not scan_files(path)[0]:
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
                "so at each checkpoint, and about once a minute)"
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
    default = EditPolicy().record()
    policy = ", ".join(
        f"{name}={value!r}"
        for name, value in info["policy"].items()
        if name not in default or default[name] != value
    )
    prior = f"{fingerprint[:12]} {precision}".strip()
    return f"prior {prior}, EditPolicy({policy})"


def _check_generation(journal: Journal, generation: int, *, lowest: int) -> None:
    held = journal.generations
    if generation not in held and not generation == lowest == 0:
        source = "0 (the source) or " if lowest == 0 else ""
        raise UnusableError(
            f"--generation {generation}: not in the journal; write {source}one of {held}"
        )


# show


def _show(args: argparse.Namespace) -> None:
    journal = open_journal(args.path)
    if args.generation is not None:
        _check_generation(journal, args.generation, lowest=1)
    chosen = journal.generations if args.generation is None else [args.generation]
    tokenizer = named_tokenizer(args.tokenizer)
    frames = [f for _, f in read_valid(args.path) if len(f.keys) and f.info["generation"] in chosen]
    _print_table(journal, chosen)
    print()
    for generation in chosen:
        of = [frame.info for frame in frames if frame.info["generation"] == generation]
        print(f"generation {generation}: {' and '.join(dict.fromkeys(map(made_with, of)))}")
    if args.limit:
        _print_changes(frames, tokenizer, args.limit)


def _print_table(journal: Journal, chosen: list[int]) -> None:
    stats, sizes = journal.stats(), Counter[int]()
    for file in list_files(journal.path):
        sizes[file.generation] += file.path.stat().st_size
    rows = [
        ["generation", "documents", "tokens", "scored", "selected", "changed", "dropped", "bytes"]
    ]
    for generation in chosen:
        of = stats[generation]
        shares = (f"{of[n]:,} ({_percent(of[f'{n}_share'])})" for n in ("selected", "changed"))
        counts = [f"{of[name]:,}" for name in ("documents", "tokens", "scored")]
        dropped, size = f"{of['dropped']:,}", f"{sizes[generation]:,}"
        rows.append([str(generation), *counts, *shares, dropped, size])
    print(in_columns(rows))


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.3g}%"


def _print_changes(frames: list[Frame], tokenizer: Any, limit: int) -> None:
    shown = list(islice(_changes(frames), limit + 1))
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


def _changes(frames: list[Frame]) -> Iterator[tuple[int, int, list[int]]]:
    """Generation, document and change, in the order of the files."""
    for frame in frames:
        for key, change in zip(np.repeat(frame.keys, frame.counts), frame.changes, strict=True):
            yield frame.info["generation"], int(key), change.tolist()


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
    _check_generation(journal, generation, lowest=0)
    data, prep = open_data(args.data, args.split), options.preparation_of(args)
    reviser = Reviser(
        data,
        lambda batch, documents: replay(data, batch, documents, journal, generation),
        prep.set_up(named_tokenizer(args.tokenizer)),
        prep,
        with_text=not args.no_text,
    )
    with (
        whole(args.output, "--output", replace=False) as target,
        progress_bar(data.count_rows, "rows") as bar,
    ):

        def rows() -> Iterator[Any]:
            for batch in data.batches():
                yield from reviser.revise(batch)
                bar.update(len(batch.rows))

        write_rows(data, reviser, rows(), target, args.output.suffix, bar)
        if not reviser.counts["rows"]:
            raise data.error("it holds no rows; check the path")
        if generation:
            check_known(reviser.counts["known"], args.data, generation)
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
            "source. Use --tokenizer, without --no-text, to write the edited text as column text."
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
        files = scan_files(args.path)[0]
    frames = {file.path.name: _check_file(file, problems) for file in files}
    readable = {name: frame for name, frame in frames.items() if frame is not None}
    valid = dict(zip(readable, without_void(list(readable.values())), strict=True))
    num_void = sum(len(readable[name].keys) - len(valid[name].keys) for name in valid)
    if num_void:
        are = "edit is" if num_void == 1 else "edits are"
        print(f"{num_void:,} {are} void: the run was killed, and resumed from before (fine)")
    generations: dict[int, dict[str, Frame]] = {}
    for name, frame in valid.items():
        if len(frame.keys):
            generations.setdefault(frame.info["generation"], {})[name] = frame
    for generation, of in sorted(generations.items()):
        _check_edits(generation, of, problems)
    for problem in problems:
        print(f"problem: {problem}")
    number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(f"{args.path}: {f'not sound, {number}' if problems else 'sound'}")
    return 1 if problems else 0


def _check_file(file: SegmentFile, problems: list[str]) -> Frame | None:
    """Read a file and print a line about it; None: it has a problem."""
    name = file.path.name
    try:
        frame = file.read()
    except (DamagedFileError, OSError) as error:
        problems.append(str(error))
        print(f"{name}: DAMAGED")
        return None
    if file.generation == 0:
        print(f"{name}: notes a resumed run")
    else:
        documents, changes = len(frame.keys), len(frame.changes)
        print(f"{name}: {_plural(documents, 'document')}, {_plural(changes, 'change')}")
    return frame


def _check_edits(generation: int, frames: dict[str, Frame], problems: list[str]) -> None:
    """Check that there is one prior and policy, and one edit of each document."""
    origins = {
        json.dumps([f.info["prior"], f.info["policy"]], sort_keys=True): (
            f"{made_with(f.info)} ({name})"
        )
        for name, f in frames.items()
    }
    if len(origins) > 1:
        problems.append(
            f"generation {generation} was made in {len(origins)} ways: "
            f"{' and '.join(origins.values())}; keep the files of one of the runs"
        )
    frame = Frame.joined(list(frames.values()))
    ends = np.cumsum(frame.counts)
    order = np.argsort(frame.keys, kind="stable")
    again = np.flatnonzero(frame.keys[order][1:] == frame.keys[order][:-1]) + 1
    different: dict[int, None] = {}
    for now, before in zip(order[again], order[again - 1], strict=True):
        a, b = (frame.changes[ends[n] - frame.counts[n] : ends[n]] for n in (now, before))
        if not np.array_equal(a, b):
            different[int(frame.keys[now])] = None
    if different:
        some = ", ".join(f"{key:016x}" for key in list(different)[:3])
        problems.append(
            f"generation {generation} edited {_plural(len(different), 'document')} twice, and "
            f"differently ({some}{', ...' if len(different) > 3 else ''}): replay uses the edit of "
            "the earlier step, while training may have used the other one, too; did two runs "
            "write to the journal?"
        )
    alike = sum(int(key) not in different for key in frame.keys[order][again])
    twice = f", {alike:,} of them recorded again with the same edit (fine)" if alike else ""
    print(f"generation {generation}: {_plural(len(frame.keys) - len(again), 'document')}{twice}")


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
